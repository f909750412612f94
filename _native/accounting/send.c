/*
 * The life of one send: new, queued, in flight, held; settled, when its buffer is the caller's again;
 * and retired, when nothing refers to it any more.
 */
#include <string.h>

#include "accounting.h"

static bool set_address(struct zc_core *core, struct zc_send *send, const void *to, size_t to_size)
{
    send->to = zc_alloc(core, sizeof(*send->to));
    if (!send->to)
        return false;
    memcpy(send->to, to, to_size);
    send->to_size = (socklen_t)to_size;
    return true;
}

/*
 * A send without bytes, on no list yet, for a generation; NULL: the one that the context has open.
 * `to` is a struct sockaddr of `to_size` bytes, or NULL.
 */
struct zc_send *zc_send_new(struct zc_core *core, struct zc_ctx *ctx, struct zc_gen *gen,
                            struct zc_sock *sock, size_t buffers, const void *to, size_t to_size)
{
    struct zc_send *send = zc_alloc(core, sizeof(*send));
    if (!send)
        return NULL;
    link_init(&send->gen_link);
    link_init(&send->sock_link);
    link_init(&send->failed_event.link);
    link_init(&send->result_event.link);
    send->sock = sock;
    send->ctx_id = ctx->id;
    send->buffers = (uint32_t)buffers;
    send->region = NO_REGION;
    send->state = SEND_QUEUED;
    send->refs = 1;
    send->queue_ref = true;
    send->iov = buffers > 1 ? zc_alloc(core, buffers * sizeof(struct iovec)) : &send->one;
    if (send->iov && (!to || set_address(core, send, to, to_size)))
        send->gen = gen ? gen : zc_gen_open(core, ctx);
    if (!send->gen) {
        zc_send_forget(core, send);
        return NULL;
    }
    return send;
}

/* Counts `size` more bytes of `count` more sends of the program. */
void zc_send_grow(struct zc_core *core, struct zc_send *send, size_t size, uint32_t count)
{
    struct zc_ctx *ctx = send->gen->ctx;
    if (send->slab)
        send->one.iov_len += size;
    send->size += size;
    send->count += count;
    send->weight += size;
    send->gen->bytes += size;
    send->gen->total += count;
    ctx->unreleased += size;
    ctx->stats.sends += count;
    ctx->stats.unreleased_sends += count;
    core->stats.sends += count;
    core->stats.queued += count;
    core->waiting_bytes += size;
    core->waiting_sends += count;
}

static uint64_t *state_counter(struct zc_core *core, enum send_state state)
{
    switch (state) {
    case SEND_QUEUED:
        return &core->stats.queued;
    case SEND_IN_FLIGHT:
        return &core->stats.in_flight;
    default:
        return &core->stats.held;
    }
}

void zc_send_set_state(struct zc_core *core, struct zc_send *send, enum send_state state)
{
    *state_counter(core, send->state) -= send->count;
    send->state = state;
    *state_counter(core, state) += send->count;
}

/* Frees the memory of a send that is on no list any more. */
void zc_send_forget(struct zc_core *core, struct zc_send *send)
{
    if (send->slab) {
        zc_give_slab(&core->stage, send->slab);
        send->sock->slabs--;
    }
    zc_free(core, send->to);
    if (send->iov != &send->one)
        zc_free(core, send->iov);
    zc_free(core, send);
}

/* Takes a send out of the window. */
static void free_window(struct zc_core *core, struct zc_ctx *ctx, struct zc_send *send)
{
    ctx->unreleased -= send->weight;
    send->weight = 0;
    if (ctx->wanted && (!ctx->unreleased || ctx->unreleased + ctx->wanted <= ctx->window)) {
        ctx->wanted = 0;
        zc_tell(core, &ctx->window_event, ZC_EV_WINDOW);
    }
}

/* A send leaves its generation: its buffer is the caller's again. */
static void settle(struct zc_core *core, struct zc_send *send)
{
    struct zc_gen *gen = send->gen;
    struct zc_ctx *ctx = gen->ctx;
    if (!send->error && send->slab) {
        core->stats.staged += send->count;
        ctx->stats.staged += send->count;
    } else if (!send->error) {
        *(send->copied ? &core->stats.copied : &core->stats.zero_copied) += send->count;
        *(send->copied ? &ctx->stats.copied : &ctx->stats.zero_copied) += send->count;
    }
    if (!send->error && send->sock->kernel_tls)
        core->stats.kernel_tls += send->count;
    ctx->stats.unreleased_sends -= send->count;
    free_window(core, ctx, send);
    send->gen = NULL;
    link_remove(&send->gen_link);
    zc_gen_check(core, gen);
}

static void retire(struct zc_core *core, struct zc_send *send)
{
    struct zc_sock *sock = send->sock;
    *state_counter(core, send->state) -= send->count;
    link_remove(&send->sock_link);
    if (send->gen)
        settle(core, send);
    send->retired = true;
    zc_send_forget_told(core, send);
    zc_sock_check_idle(core, sock);
}

/* Frees the memory of a retired send, unless one of its events is still to be told. */
void zc_send_forget_told(struct zc_core *core, struct zc_send *send)
{
    if (send->retired && link_alone(&send->failed_event.link) &&
        link_alone(&send->result_event.link))
        zc_send_forget(core, send);
}

void zc_send_unref(struct zc_core *core, struct zc_send *send)
{
    if (--send->refs == 0)
        retire(core, send);
}

/* The queue lets go of a send: all of its bytes were taken, or no more of them will be. */
void zc_send_leave_queue(struct zc_core *core, struct zc_send *send)
{
    send->queue_ref = false;
    if (send->flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH))
        zc_tell(core, &send->result_event, ZC_EV_RESULT);
    /* The proposal's FLUSH: it acts only when the send succeeds. */
    if (send->flags & ZC_SEND_FLUSH && !send->error && !send->gen->flushed)
        zc_gen_flush(core, send->gen);
    if (send->gen->ctx->until_taken)
        free_window(core, send->gen->ctx, send);
    /* A staged send's own buffer is free already; only the slab is still held. */
    if (send->slab)
        settle(core, send);
    if (send->refs > 1)
        zc_send_set_state(core, send, SEND_HELD);
    zc_send_unref(core, send);
}

/* Notes that a send has failed, so that this is told; the send stays on its lists. */
void zc_send_note_failure(struct zc_core *core, struct zc_send *send, int error)
{
    if (send->error || !send->gen)
        return;
    send->error = error;
    core->stats.failed += send->count;
    send->gen->ctx->stats.failed += send->count;
    if (!send->cancelled) {
        send->sock->untold++;
        zc_tell(core, &send->failed_event, ZC_EV_FAILED);
    }
}

void zc_send_fail(struct zc_core *core, struct zc_send *send, int error)
{
    zc_send_note_failure(core, send, error);
    zc_send_leave_queue(core, send);
}
