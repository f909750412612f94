/*
 * The queue of one socket: taking sends in order, breaking, cancelling, retiring.
 *
 * Nothing here makes a system call.
 */
#include <errno.h>
#include <string.h>

#include "internal.h"

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
    link_init(&sock->sends);
    link_init(&sock->requests);
    link_append(&core->sockets, &sock->link);
    core->stats.sockets++;
    return sock;
}

/*
 * The socket takes no sends until it is resumed.  Refused with EBUSY while a send or a request
 * refers to it, or a failure was not told.
 */
int zc_sock_suspend(zc_core *core, zc_sock *sock)
{
    if (!core || !sock)
        return -EINVAL;
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests) || sock->untold)
        return -EBUSY;
    link_remove(&sock->ready_link);
    link_remove(&sock->broken_link);
    link_remove(&sock->idle_event.link);
    link_remove(&sock->linger_link);
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
    sock->suspended = false;
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
    zc_release(core, sock);
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
    zc_release(core, send->to);
    if (send->iov != &send->one)
        zc_release(core, send->iov);
    zc_release(core, send);
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

/* Tells of the sockets that have been idle for long enough; `now` in milliseconds, never less. */
int zc_core_advance(zc_core *core, uint64_t now)
{
    if (!core)
        return -EINVAL;
    core->now = now;
    while (!link_alone(&core->lingering)) {
        struct zc_sock *sock = container(core->lingering.next, struct zc_sock, linger_link);
        if (core->linger && now - sock->idle_since < core->linger)
            break;
        link_remove(&sock->linger_link);
        zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
    }
    return 0;
}

/* How long an idle socket stays attached; 0 tells of all that are idle. */
int zc_core_linger(zc_core *core, uint32_t milliseconds)
{
    if (!core)
        return -EINVAL;
    core->linger = milliseconds;
    return zc_core_advance(core, core->now);
}

/* A send leaves its generation: its buffer is the caller's again. */
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
    if (news && link_alone(&sock->broken_link))
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

/* Resets every stream that anything refers to, what was staged included: the ring ends. */
int zc_core_reset(zc_core *core, int error)
{
    if (!core || error <= 0)
        return -EINVAL;
    for (struct link *l = core->sockets.next; l != &core->sockets; l = l->next) {
        struct zc_sock *sock = container(l, struct zc_sock, link);
        if (link_alone(&sock->sends))
            continue;
        if (sock->kind == ZC_STREAM) {
            zc_sock_break(core, sock, error, true);
            continue;
        }
        for (struct link *s = sock->sends.next; s != &sock->sends; s = s->next)
            container(s, struct zc_send, sock_link)->cancelled = true;
        zc_sock_sweep(core, sock);
    }
    return 0;
}

/* Deals with the cancelled sends of a socket that are queued or in flight. */
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
    for (struct zc_send *send = sock->head, *next; send; send = next) {
        next = zc_sock_next_send(sock, send);
        if (!send->cancelled || send->state != SEND_QUEUED)
            continue;
        if (send->done) {
            zc_sock_break(core, sock, ECANCELED, false);
            return;
        }
        if (sock->head == send)
            sock->head = next;
        zc_send_fail(core, send, ECANCELED);
    }
    if (!sock->head)
        link_remove(&sock->ready_link);
}

/* --- taking sends --- */

/* A send without bytes, on no list yet; it joins the context's open generation when enqueued. */
struct zc_send *zc_send_new(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                            size_t buffers)
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
    send->state = SEND_QUEUED;
    send->refs = 1;
    send->queue_ref = true;
    send->iov = buffers > 1 ? zc_alloc(core, buffers * sizeof(struct iovec)) : &send->one;
    send->gen = send->iov ? zc_gen_open(core, ctx) : NULL;
    if (!send->gen) {
        zc_send_forget(core, send);
        return NULL;
    }
    return send;
}

void zc_send_enqueue(struct zc_core *core, struct zc_send *send)
{
    struct zc_sock *sock = send->sock;
    link_append(&send->gen->sends, &send->gen_link);
    link_append(&sock->sends, &send->sock_link);
    link_remove(&sock->idle_event.link);
    link_remove(&sock->linger_link);
    if (!sock->head)
        sock->head = send;
    zc_sock_make_ready(core, sock);
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

/* What the caller is told of a send that was queued. */
int64_t zc_send_queued(struct zc_core *core, struct zc_send *send)
{
    int64_t sent = (int64_t)(send->gen->number << ZC_SENT_SHIFT);
    size_t enough =
        send->slab ? TURN_BYTES : batch_bytes(send->gen->ctx, TURN_BYTES, TURN_BYTES_MOST);
    if (core->waiting_bytes >= enough || core->waiting_sends >= TURN_SENDS)
        sent |= ZC_SENT_TURN;
    else if (core->waiting_sends % LOOK_SENDS == 1)
        sent |= ZC_SENT_KICK;
    return send->slab ? sent | ZC_SENT_STAGED : sent;
}

/* A send larger than the window is let in alone. */
bool zc_window_full(struct zc_ctx *ctx, size_t size)
{
    if (!ctx->unreleased || (size <= ctx->window && ctx->unreleased <= ctx->window - size))
        return false;
    if (!size)
        size = 1;
    if (!ctx->wanted || size < ctx->wanted)
        ctx->wanted = size;
    return true;
}

static int64_t enqueue(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                       const char *const *data, const size_t *sizes, size_t count, size_t total,
                       uint32_t flags)
{
    struct zc_send *send = zc_send_new(core, ctx, sock, count);
    if (!send)
        return -ENOMEM;
    for (size_t i = 0; i < count; i++) {
        send->iov[i].iov_base = (void *)(uintptr_t)data[i];
        send->iov[i].iov_len = sizes[i];
    }
    send->flags = flags;
    zc_send_enqueue(core, send);
    zc_send_grow(core, send, total, 1);
    send->ticket = ctx->stats.sends;
    return zc_send_queued(core, send);
}

static bool is_staged(const struct zc_core *core, const struct zc_ctx *ctx,
                      const struct zc_sock *sock, size_t count, size_t total, uint32_t flags)
{
    return core->stage.memory && ctx->policy != ZC_POLICY_NEVER && total < ctx->threshold &&
           sock->kind == ZC_STREAM && count == 1 && !(flags & ~(uint32_t)ZC_SEND_MUTABLE);
}

int64_t zc_sendv(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                 const size_t *sizes, size_t count, uint32_t flags)
{
    size_t total = 0;
    if (!core || !ctx || !sock || !data || !sizes || count == 0)
        return -EINVAL;
    if (core->disowned || !pthread_equal(core->owner, pthread_self()))
        return -EPERM;
    if (count > (sock->kind == ZC_DATAGRAM ? UIO_MAXIOV : SEND_MAX_BUFFERS))
        return -EMSGSIZE;
    for (size_t i = 0; i < count; i++)
        if (__builtin_add_overflow(total, sizes[i], &total) || total > SSIZE_MAX)
            return -EMSGSIZE;
    if (sock->kind == ZC_STREAM && total == 0)
        return -EINVAL;
    if (sock->kind == ZC_DATAGRAM && total > UINT16_MAX)
        return -EMSGSIZE;
    if (sock->error)
        return -EPIPE;
    if (sock->suspended)
        return -EBADF;
    if (zc_window_full(ctx, total))
        return -EAGAIN;
    int64_t sent = -ENOSPC;
    if (is_staged(core, ctx, sock, count, total, flags))
        sent = zc_stage_send(core, ctx, sock, data[0], total);
    if (sent == -ENOSPC)
        sent = enqueue(core, ctx, sock, data, sizes, count, total, flags);
    zc_gen_roll(core, ctx);
    return sent;
}

int64_t zc_send(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                uint32_t flags)
{
    return zc_sendv(core, ctx, sock, &data, &size, 1, flags);
}

/* One datagram to an address, a struct sockaddr of `to_size` bytes. */
int64_t zc_send_to(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                   const size_t *sizes, size_t count, uint32_t flags, const char *to,
                   size_t to_size)
{
    if (!core || !sock || sock->kind != ZC_DATAGRAM || !to ||
        to_size > sizeof(struct sockaddr_storage))
        return -EINVAL;
    struct sockaddr_storage *address = zc_alloc(core, sizeof(*address));
    if (!address)
        return -ENOMEM;
    memcpy(address, to, to_size);
    int64_t sent = zc_sendv(core, ctx, sock, data, sizes, count, flags);
    if (sent < 0) {
        zc_release(core, address);
        return sent;
    }
    struct zc_send *send = container(sock->sends.prev, struct zc_send, sock_link);
    send->to = address;
    send->to_size = (socklen_t)to_size;
    return sent;
}

/*
 * One buffer to many sockets, admitted by the window as a whole and counted in it once: it is the
 * memory that the window bounds.  errors[i] is 0, or the errno for which socks[i] took nothing;
 * EPIPE when none took it.
 */
int64_t zc_broadcast(zc_core *core, zc_ctx *ctx, zc_sock *const *socks, size_t count,
                     const char *data, size_t size, uint32_t flags, int32_t *errors)
{
    if (!core || !ctx || !socks || !errors || count == 0 || size == 0 || size > SSIZE_MAX)
        return -EINVAL;
    for (size_t i = 0; i < count; i++)
        if (!socks[i])
            return -EINVAL;
    if (zc_window_full(ctx, size))
        return -EAGAIN;
    size_t weight = size / count + 1;
    int64_t sent = -EPIPE, turn = 0;
    for (size_t i = 0; i < count; i++) {
        int64_t one;
        if (socks[i]->error)
            one = -EPIPE;
        else if (socks[i]->suspended)
            one = -EBADF;
        else if (socks[i]->kind == ZC_DATAGRAM && size > UINT16_MAX)
            one = -EMSGSIZE;
        else
            one = enqueue(core, ctx, socks[i], &data, &size, 1, size, flags);
        errors[i] = one < 0 ? (int32_t)-one : 0;
        if (one < 0)
            continue;
        struct zc_send *send = container(socks[i]->sends.prev, struct zc_send, sock_link);
        ctx->unreleased -= size - weight;
        core->waiting_bytes -= size - weight;
        send->gen->bytes -= size - weight;
        send->weight = weight;
        turn |= one & (ZC_SENT_TURN | ZC_SENT_KICK);
        sent = one & ~(int64_t)(ZC_SENT_TURN | ZC_SENT_KICK);
    }
    /* Only now: all of a broadcast is in one generation, which holds one reference to the buffer. */
    zc_gen_roll(core, ctx);
    return sent < 0 ? sent : sent | turn;
}
