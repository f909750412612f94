/*
 * Staging memory: memory of the ring, into which small sends are written, so that their buffers are
 * free at once and many of them leave as one request.
 *
 * It is cut into slabs, and the first free one is taken next.  So the runs of a busy socket touch, and
 * go out as one piece, and memory that was read a moment ago is written again while the processor's
 * cache has it.
 */
#include <errno.h>
#include <stdlib.h>

#include "accounting.h"

/* Gives the core memory for staging, which the caller frees after the core. */
int zc_core_stage(zc_core *core, char *memory, size_t size)
{
    if (!core || !memory || core->stage.memory || size < STAGE_SLAB)
        return -EINVAL;
    core->stage.taken = calloc(size / STAGE_SLAB, sizeof(bool));
    if (!core->stage.taken)
        return -ENOMEM;
    core->stage.memory = memory;
    core->stage.slabs = size / STAGE_SLAB;
    return 0;
}

/* The first free slab; NULL: none. */
char *zc_take_slab(struct zc_stage *stage)
{
    while (stage->first < stage->slabs && stage->taken[stage->first])
        stage->first++;
    if (stage->first == stage->slabs)
        return NULL;
    stage->taken[stage->first] = true;
    return stage->memory + stage->first * STAGE_SLAB;
}

void zc_give_slab(struct zc_stage *stage, const char *memory)
{
    size_t slab = (size_t)(memory - stage->memory) / STAGE_SLAB;
    stage->taken[slab] = false;
    if (slab < stage->first)
        stage->first = slab;
}
