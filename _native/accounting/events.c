/*
 * Telling Python what has happened, and the end of a core: both free what waited to be told.
 */
#include <errno.h>
#include <stdlib.h>

#include "accounting.h"

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
            zc_free(core, gen);
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

/* Frees everything that is left, whatever its state: only for a ring that no longer exists. */
int zc_core_free(zc_core *core)
{
    if (!core)
        return -EINVAL;
    while (!link_alone(&core->requests)) {
        struct zc_req *req = container(core->requests.next, struct zc_req, link);
        link_remove(&req->link);
        zc_free(core, req);
    }
    /* Events first: a released generation or a failed and retired send is on no other list. */
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
            zc_free(core, gen);
        }
        link_remove(&ctx->link);
        zc_free(core, ctx);
    }
    while (!link_alone(&core->sockets)) {
        struct zc_sock *sock = container(core->sockets.next, struct zc_sock, link);
        while (!link_alone(&sock->sends)) {
            /* It is staged and settled, so it is on no generation's list any more. */
            struct zc_send *send = container(sock->sends.next, struct zc_send, sock_link);
            link_remove(&send->sock_link);
            zc_send_forget(core, send);
        }
        link_remove(&sock->link);
        zc_free(core, sock);
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
