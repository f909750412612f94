/*
 * Staging: memory of the ring's own that small sends are written into, so that their buffers are
 * free at once, and that many of them leave as one request.
 *
 * The memory is cut into slabs.  A staged run is an ordinary send whose buffer is a slab, and which
 * grows while it is the last of its socket's queue and its generation is open.  The first slab that is
 * free is the next: so the runs of a busy socket touch, and go out as one piece, and memory that was
 * read a moment ago is written again while the processor's cache has it.
 *
 * Nothing here makes a system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Gives the core memory for staging, which stays the caller's to free after the core. */
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
static char *take_slab(struct zc_stage *stage)
{
    while (stage->first < stage->slabs && stage->taken[stage->first])
        stage->first++;
    if (stage->first == stage->slabs)
        return NULL;
    stage->taken[stage->first] = true;
    return stage->memory + stage->first * STAGE_SLAB;
}

static void give_slab(struct zc_stage *stage, const char *memory)
{
    size_t slab = (size_t)(memory - stage->memory) / STAGE_SLAB;
    stage->taken[slab] = false;
    if (slab < stage->first)
        stage->first = slab;
}

/* Gives back the slab that a run was written into. */
void zc_stage_give_back(struct zc_core *core, struct zc_send *run)
{
    give_slab(&core->stage, run->slab);
    run->sock->slabs--;
}

/* The run at the end of a socket's queue, if more of this context's bytes can follow in it. */
static struct zc_send *last_run(const struct zc_ctx *ctx, const struct zc_sock *sock)
{
    if (link_alone(&sock->sends))
        return NULL;
    struct zc_send *last = container(sock->sends.prev, struct zc_send, sock_link);
    return last->slab && last->queue_ref && last->state == SEND_QUEUED && !last->cancelled &&
                   last->gen == ctx->open
               ? last
               : NULL;
}

/*
 * Writes a send into staging memory.  ENOSPC: no slab is free, or the socket has its share, so that
 * one stalled peer never starves another; the send then goes the other way.
 */
int64_t zc_stage_send(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                      const char *data, size_t size)
{
    struct zc_send *run = last_run(ctx, sock);
    size_t room = run ? (size_t)(run->slab + STAGE_SLAB - (char *)run->one.iov_base) -
                            run->one.iov_len
                      : 0;
    size_t first = size < room ? size : room;
    if (size - first > STAGE_SLAB)
        return -ENOSPC;
    if (size > first) {
        char *slab = sock->slabs < STAGE_SHARE ? take_slab(&core->stage) : NULL;
        if (!slab)
            return -ENOSPC;
        struct zc_send *rest = zc_send_new(core, ctx, sock, 1);
        if (!rest) {
            give_slab(&core->stage, slab);
            return -ENOMEM;
        }
        sock->slabs++;
        rest->slab = slab;
        rest->one.iov_base = slab;
        rest->region = STAGE_REGION;
        rest->registered = true;
        rest->continues = first > 0;
        if (first) {
            memcpy((char *)run->one.iov_base + run->one.iov_len, data, first);
            zc_send_grow(core, run, first, 0);
        }
        run = rest;
        zc_send_enqueue(core, run);
    }
    size_t part = size > first ? size - first : first;
    memcpy((char *)run->one.iov_base + run->one.iov_len, data + (size - part), part);
    zc_send_grow(core, run, part, 1);
    return zc_send_queued(core, run);
}
