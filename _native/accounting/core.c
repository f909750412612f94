/*
 * The core of a ring: its memory, its counters, and the events that wait to be told.
 */
#include <errno.h>
#include <stdlib.h>

#include "accounting.h"

void *zc_alloc(struct zc_core *core, size_t size)
{
    if (core->alloc_budget == 0)
        return NULL;
    void *memory = calloc(1, size);
    if (!memory)
        return NULL;
    if (core->alloc_budget > 0)
        core->alloc_budget--;
    core->stats.allocations++;
    return memory;
}

void zc_free(struct zc_core *core, void *memory)
{
    if (!memory)
        return;
    core->stats.allocations--;
    free(memory);
}

zc_core *zc_core_new(uint32_t first_sequence, uint32_t max_requests)
{
    struct zc_core *core = calloc(1, sizeof(*core));
    if (!core)
        return NULL;
    /* The highest slot number is kept for requests without an owner: cancellations. */
    if (max_requests == 0 || max_requests >= UINT32_MAX)
        goto fail;
    core->slots = calloc(max_requests, sizeof(struct zc_req *));
    core->numbered = calloc(max_requests, sizeof(struct zc_req *));
    core->sequences = calloc(max_requests, sizeof(uint32_t));
    core->free_slots = calloc(max_requests, sizeof(uint32_t));
    if (!core->slots || !core->numbered || !core->sequences || !core->free_slots)
        goto fail;
    for (uint32_t i = 0; i < max_requests; i++)
        core->sequences[i] = first_sequence;
    core->max_requests = max_requests;
    core->owner = pthread_self();
    core->alloc_budget = -1;
    core->most_pinned = GATHER_BYTES_MOST;
    core->turn_bytes = SIZE_MAX;
    core->turn_requests = UINT32_MAX;
    link_init(&core->events);
    link_init(&core->ready);
    link_init(&core->cancels);
    link_init(&core->broken);
    link_init(&core->lingering);
    link_init(&core->watched);
    link_init(&core->lost);
    link_init(&core->contexts);
    link_init(&core->sockets);
    link_init(&core->requests);
    return core;
fail:
    free(core->slots);
    free(core->numbered);
    free(core->sequences);
    free(core->free_slots);
    free(core);
    return NULL;
}

/* Refuses all further sends: this is a forked child, whose parent goes on using the same sockets. */
int zc_core_disown(zc_core *core)
{
    if (!core)
        return -EINVAL;
    core->disowned = true;
    return 0;
}

void zc_core_stats(const zc_core *core, struct zc_stats *out)
{
    if (core && out)
        *out = core->stats;
}

void zc_core_alloc_budget(zc_core *core, int64_t allocations)
{
    core->alloc_budget = allocations;
}

/* Tells an event; one that is already waiting is not told twice. */
void zc_tell(struct zc_core *core, struct event *event, int kind)
{
    if (!link_alone(&event->link))
        return;
    event->kind = kind;
    link_append(&core->events, &event->link);
}
