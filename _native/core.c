/*
 * The core of a ring: its memory, its counters, and the events that wait to be told.
 *
 * Nothing here makes a system call.
 */
#include <errno.h>
#include <stdlib.h>

#include "internal.h"

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

void zc_release(struct zc_core *core, void *memory)
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
    /* The highest slot number is kept for requests that are nobody's: cancellations. */
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

/* Takes no more sends: this is a forked child, whose parent goes on using the same sockets. */
int zc_core_disown(zc_core *core)
{
    if (!core)
        return -EINVAL;
    core->disowned = true;
    return 0;
}

/* Frees everything that is left, whatever its state: only for a ring that no longer exists. */
int zc_core_free(zc_core *core)
{
    if (!core)
        return -EINVAL;
    while (!link_alone(&core->requests)) {
        struct zc_req *req = container(core->requests.next, struct zc_req, link);
        link_remove(&req->link);
        zc_release(core, req);
    }
    /* Events first: a released generation, or a retired send that failed, is on no other list. */
    int64_t event[ZC_EVENT_FIELDS];
    while (zc_events(core, event, 1) == 1)
        ;
    while (!link_alone(&core->contexts)) {
        struct zc_ctx *ctx = container(core->contexts.next, struct zc_ctx, link);
        while (!link_alone(&ctx->gens)) {
            struct zc_gen *gen = container(ctx->gens.next, struct zc_gen, link);
            while (!link_alone(&gen->sends)) {
                struct zc_send *send = container(gen->sends.next, struct zc_send, gen_link);
                link_remove(&send->gen_link);
                link_remove(&send->sock_link);
                zc_send_forget(core, send);
            }
            link_remove(&gen->link);
            zc_release(core, gen);
        }
        link_remove(&ctx->link);
        zc_release(core, ctx);
    }
    while (!link_alone(&core->sockets)) {
        struct zc_sock *sock = container(core->sockets.next, struct zc_sock, link);
        while (!link_alone(&sock->sends)) {
            /* Staged, and settled: on no generation's list any more. */
            struct zc_send *send = container(sock->sends.next, struct zc_send, sock_link);
            link_remove(&send->sock_link);
            zc_send_forget(core, send);
        }
        link_remove(&sock->link);
        zc_release(core, sock);
    }
    int leaked = core->stats.allocations ? -ENOTEMPTY : 0;
    free(core->slots);
    free(core->numbered);
    free(core->sequences);
    free(core->free_slots);
    free(core->stage.taken);
    free(core);
    return leaked;
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

/* An event that is already waiting is not told twice. */
void zc_tell(struct zc_core *core, struct event *event, int kind)
{
    if (!link_alone(&event->link))
        return;
    event->kind = kind;
    link_append(&core->events, &event->link);
}

int zc_events(zc_core *core, int64_t *out, int max_events)
{
    int count = 0;
    if (!core || !out || max_events < 0)
        return -EINVAL;
    for (; count < max_events && !link_alone(&core->events); count++, out += ZC_EVENT_FIELDS) {
        struct event *event = container(core->events.next, struct event, link);
        link_remove(&event->link);
        out[0] = event->kind;
        out[1] = out[2] = out[3] = 0;
        switch (event->kind) {
        case ZC_EV_RELEASED: {
            struct zc_gen *gen = container(event, struct zc_gen, released_event);
            out[1] = (int64_t)gen->ctx->id;
            out[2] = (int64_t)gen->number;
            gen->ctx->untold--;
            zc_release(core, gen);
            break;
        }
        case ZC_EV_FAILED: {
            struct zc_send *send = container(event, struct zc_send, failed_event);
            out[1] = (int64_t)send->ctx_id;
            out[2] = (int64_t)send->sock->id;
            out[3] = send->error;
            send->sock->untold--;
            zc_send_forget_told(core, send);
            break;
        }
        case ZC_EV_RESULT: {
            struct zc_send *send = container(event, struct zc_send, result_event);
            out[1] = (int64_t)send->ctx_id;
            out[2] = (int64_t)send->ticket;
            out[3] = send->error;
            zc_send_forget_told(core, send);
            break;
        }
        case ZC_EV_WINDOW:
            out[1] = (int64_t)container(event, struct zc_ctx, window_event)->id;
            break;
        case ZC_EV_READY:
            out[1] = (int64_t)container(event, struct ready_event, event)->id;
            break;
        default: /* ZC_EV_IDLE */
            out[1] = (int64_t)container(event, struct zc_sock, idle_event)->id;
        }
    }
    return count;
}
