/*
 * The queue of one socket: when it is ready, idle or suspended; breaking, cancelling, retiring.
 *
 * Nothing here makes a system call.
 */
#include <errno.h>

#include "accounting.h"

zc_sock *zc_sock_new(zc_core *core, uint64_t id, int fd, int kind, int can_zero_copy)
{
    if (!core || (kind != ZC_STREAM && kind != ZC_DATAGRAM))
        return NULL;
    struct zc_sock *sock = zc_alloc(core, sizeof(*sock));
    if (!sock)
        return NULL;
    sock->id = id;
    sock->fd = fd;
    sock->kind = kind;
    sock->can_zero_copy = can_zero_copy;
    sock->most_zero_copy = SIZE_MAX;
    link_init(&sock->ready_link);
    link_init(&sock->broken_link);
    link_init(&sock->work_link);
    link_init(&sock->idle_event.link);
    link_init(&sock->linger_link);
    link_init(&sock->watch_link);
    sock->program_fd = -1;
    link_init(&sock->sends);
    link_init(&sock->requests);
    link_append(&core->sockets, &sock->link);
    core->stats.sockets++;
    return sock;
}

static void unwatch(struct zc_core *core, struct zc_sock *sock)
{
    core->watched_count -= !link_alone(&sock->watch_link);
    link_remove(&sock->watch_link);
}

/* The program has the socket by this descriptor, and closes it without a word; -1: it tells. */
int zc_sock_watch(zc_core *core, zc_sock *sock, int program_fd)
{
    if (!core || !sock)
        return -EINVAL;
    unwatch(core, sock);
    sock->program_fd = program_fd;
    if (program_fd < 0)
        return 0;
    sock->closed = false;
    link_append(&core->watched, &sock->watch_link);
    core->watched_count++;
    return 0;
}

/*
 * The socket takes no sends until it is resumed.  Refused with EBUSY while a send or a request
 * refers to it, a failure was not told, or its shutdown or reset is owed (zc_next_broken).
 */
int zc_sock_suspend(zc_core *core, zc_sock *sock)
{
    if (!core || !sock)
        return -EINVAL;
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests) || sock->untold ||
        !link_alone(&sock->broken_link))
        return -EBUSY;
    link_remove(&sock->ready_link);
    link_remove(&sock->idle_event.link);
    link_remove(&sock->linger_link);
    unwatch(core, sock);
    if (!sock->suspended)
        core->stats.sockets--;
    sock->suspended = true;
    return 0;
}

/* The socket takes sends again, by another descriptor. */
int zc_sock_resume(zc_core *core, zc_sock *sock, int fd)
{
    if (!core || !sock || !sock->suspended)
        return -EINVAL;
    sock->fd = fd;
    sock->suspended = sock->closed = sock->ended = false;
    core->stats.sockets++;
    return 0;
}

/* Refused like zc_sock_suspend. */
int zc_sock_free(zc_core *core, zc_sock *sock)
{
    int err = zc_sock_suspend(core, sock);
    if (err < 0)
        return err;
    link_remove(&sock->link);
    zc_free(core, sock);
    return 0;
}

/* The errno that broke the socket, 0 if it is whole. */
int zc_sock_error(const zc_sock *sock)
{
    return sock ? sock->error : -EINVAL;
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

/* The memory of a send that is on no list any more. */
void zc_send_forget(struct zc_core *core, struct zc_send *send)
{
    if (send->slab)
        zc_stage_give_back(core, send);
    zc_free(core, send->to);
    if (send->iov != &send->one)
        zc_free(core, send->iov);
    zc_free(core, send);
}

void zc_sock_make_ready(struct zc_core *core, struct zc_sock *sock)
{
    uint32_t most = sock->kind == ZC_STREAM ? 1 : DATAGRAMS_IN_FLIGHT;
    if (sock->head && !sock->error && sock->in_flight < most && !sock->blocked &&
        link_alone(&sock->ready_link))
        link_append(&core->ready, &sock->ready_link);
}

/* The socket takes no more until it is writable. */
void zc_sock_block(struct zc_sock *sock)
{
    sock->blocked = true;
    link_remove(&sock->ready_link);
}

/* The socket is writable again. */
void zc_sock_unblock(struct zc_core *core, struct zc_sock *sock)
{
    sock->blocked = false;
    zc_sock_make_ready(core, sock);
}

/*
 * Idle is a socket that nothing refers to: the descriptor can be given up.  That is told a little
 * later, since a socket that was sent to is often sent to again, and attaching costs more than that.
 */
void zc_sock_check_idle(struct zc_core *core, struct zc_sock *sock)
{
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests))
        return;
    if (!core->linger || sock->error) {
        zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
        return;
    }
    sock->idle_since = core->now;
    link_remove(&sock->linger_link);
    link_append(&core->lingering, &sock->linger_link);
}

/* Tells of the sockets that have been idle for long enough; `now` counts ticks, and is never less. */
int zc_core_advance(zc_core *core, uint64_t now)
{
    if (!core)
        return -EINVAL;
    core->now = now;
    core->ticking = false;
    while (!link_alone(&core->lingering)) {
        struct zc_sock *sock = container(core->lingering.next, struct zc_sock, linger_link);
        if (now - sock->idle_since < core->linger)
            break;
        link_remove(&sock->linger_link);
        zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
    }
    return 0;
}

/* For how many ticks an idle socket stays attached; 0 tells of all that are idle. */
int zc_core_linger(zc_core *core, uint32_t ticks)
{
    if (!core)
        return -EINVAL;
    core->linger = ticks;
    return zc_core_advance(core, core->now);
}

/* The window is free of a send. */
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
        ++*(send->copied ? &core->stats.copied : &core->stats.zero_copied);
        ++*(send->copied ? &ctx->stats.copied : &ctx->stats.zero_copied);
    }
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

/* What was not told yet keeps the memory. */
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

/* The queue lets go of a send: all of its bytes were taken, or none will be any more. */
void zc_send_leave_queue(struct zc_core *core, struct zc_send *send)
{
    send->queue_ref = false;
    if (send->flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH))
        zc_tell(core, &send->result_event, ZC_EV_RESULT);
    /* The proposal's FLUSH: it acts when the send succeeds, and only then. */
    if (send->flags & ZC_SEND_FLUSH && !send->error && !send->gen->flushed)
        zc_gen_flush(core, send->gen);
    if (send->gen->ctx->until_taken)
        free_window(core, send->gen->ctx, send);
    /* What was staged is the caller's again already; the slab is held on. */
    if (send->slab)
        settle(core, send);
    if (send->refs > 1)
        zc_send_set_state(core, send, SEND_HELD);
    zc_send_unref(core, send);
}

static void note_failure(struct zc_core *core, struct zc_send *send, int error)
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
    note_failure(core, send, error);
    zc_send_leave_queue(core, send);
}

/* The next send that the queue still owes; one that was cancelled may be held between two of them. */
struct zc_send *zc_sock_next_send(const struct zc_sock *sock, struct zc_send *send)
{
    for (struct link *l = send->sock_link.next; l != &sock->sends; l = l->next)
        if (container(l, struct zc_send, sock_link)->queue_ref)
            return container(l, struct zc_send, sock_link);
    return NULL;
}

/*
 * Breaks a stream: nothing more of what is queued leaves, and no later send is taken.  A hole in
 * the bytes must not be papered over, so the driver also shuts the connection down for sending; or
 * resets it, and then what is held was lost too.
 */
void zc_sock_break(struct zc_core *core, struct zc_sock *sock, int error, bool reset)
{
    bool news = !sock->error || (reset && !sock->reset);
    sock->error = sock->error ? sock->error : error;
    sock->reset = sock->reset || reset;
    for (struct link *l = sock->sends.next; sock->reset && l != &sock->sends; l = l->next)
        if (container(l, struct zc_send, sock_link)->state == SEND_HELD)
            note_failure(core, container(l, struct zc_send, sock_link), error);
    /* A suspended socket has no descriptor that this could be done with. */
    if (news && !sock->suspended && link_alone(&sock->broken_link))
        link_append(&core->broken, &sock->broken_link);
    link_remove(&sock->ready_link);
    for (struct link *r = sock->requests.next; r != &sock->requests; r = r->next) {
        struct zc_req *req = container(r, struct zc_req, sock_link);
        if (!req->result_seen && link_alone(&req->cancel_link))
            link_append(&core->cancels, &req->cancel_link);
    }
    struct zc_send *send = sock->head;
    if (!link_alone(&sock->requests) && send && send->state == SEND_IN_FLIGHT)
        return; /* its result comes, and fails it and what follows */
    sock->head = NULL;
    for (struct zc_send *next; send; send = next) {
        next = zc_sock_next_send(sock, send);
        if (send->state == SEND_QUEUED)
            zc_send_fail(core, send, sock->error);
    }
}

int zc_sock_fail(zc_core *core, zc_sock *sock, int error)
{
    if (!core || !sock || error <= 0)
        return -EINVAL;
    zc_sock_break(core, sock, error, false);
    return 0;
}

/*
 * Deals with the cancelled sends of a socket that are queued or in flight.  A send of the program
 * that has begun is whole, or its stream is broken: also where it stands in two units here, of which
 * the first has left, or has been handed over directly.
 */
void zc_sock_sweep(struct zc_core *core, struct zc_sock *sock)
{
    sock->sweep = false;
    for (struct link *r = sock->requests.next; r != &sock->requests; r = r->next) {
        struct zc_req *req = container(r, struct zc_req, sock_link);
        for (uint32_t i = 0; !req->result_seen && i < req->sends; i++)
            if (req->covered[i]->cancelled) {
                sock->sweep = true; /* again when its result is there */
                if (link_alone(&req->cancel_link))
                    link_append(&core->cancels, &req->cancel_link);
            }
    }
    enum { GONE, STAYS, WAITS, DROPPED } before = GONE;
    for (struct zc_send *send = sock->head, *next; send; send = next) {
        next = zc_sock_next_send(sock, send);
        if (!send->cancelled || send->state != SEND_QUEUED) {
            before = send->state == SEND_IN_FLIGHT ? WAITS : STAYS;
            continue;
        }
        if (send->continues && before == WAITS)
            continue; /* the result of what it goes on with decides */
        if (send->done || (send->continues && before != DROPPED)) {
            zc_sock_break(core, sock, ECANCELED, false);
            return;
        }
        if (sock->head == send)
            sock->head = next;
        zc_send_fail(core, send, ECANCELED);
        before = DROPPED;
    }
    if (!sock->head)
        link_remove(&sock->ready_link);
}
