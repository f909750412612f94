/*
 * Sends that need no queue: a send that would be copied anyway, on a socket with nothing before it,
 * is handed to the kernel at once by one non-blocking send.
 *
 * Through the ring it would cost a submission, a completion, and a wake-up of the event loop to find
 * that completion.  What the socket does not take is queued like any other send.
 */
#include <errno.h>

#include "ring.h"

/* Whether a socket has nothing that must leave before what is handed over now. */
static bool is_quiet(const struct zc_sock *sock)
{
    return !sock->suspended && !sock->head && !sock->in_flight && !sock->blocked && !sock->error;
}

static bool is_direct(const struct zc_core *core, const struct zc_ctx *ctx,
                      const struct zc_sock *sock, size_t size, size_t datagram, uint32_t flags)
{
    return is_quiet(sock) && !(flags & ~(uint32_t)ZC_SEND_MUTABLE) &&
           (size < ctx->alone || !zc_goes_zero_copy(core, ctx, sock, size, datagram, false));
}

/* Queues what is left of a send whose first bytes the kernel has. */
static int64_t queue_rest(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                          const char *data, size_t size, uint32_t flags)
{
    int64_t queued = zc_queue(core, ctx, sock, data, size, flags);
    if (queued < 0) {
        /* Memory is out in the middle of what is one send for the caller. */
        zc_sock_break(core, sock, ENOMEM, false);
        return queued;
    }
    struct zc_send *rest = container(sock->sends.prev, struct zc_send, sock_link);
    rest->copied = rest->continues = true;
    return queued;
}

/*
 * Hands a buffer to the kernel without a context, for a scope that sends one small message.  Returns
 * how many bytes the kernel took; 0 if the buffer has to be queued; -errno if the connection is
 * broken, which the caller finds again when it queues the send.
 */
int64_t zc_send_alone(zc_ring *ring, zc_sock *sock, const char *data, size_t size)
{
    if (!ring || !sock || !data || size == 0 || size > SSIZE_MAX)
        return -EINVAL;
    if (!zc_may_send(ring->core))
        return -EPERM;
    /* Asking a datagram socket would take its error away from the next send. */
    if (sock->kind != ZC_STREAM || !is_quiet(sock))
        return 0;
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr msg = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t sent = send_now(sock->fd, &msg);
    if (sent < 0)
        return sent == -EAGAIN || sent == -ENOBUFS ? 0 : sent;
    zc_count_direct(ring->core, NULL, sock, (size_t)sent, (size_t)sent == size);
    zc_sock_used(ring->core, sock);
    return sent;
}

/* Queues what zc_send_alone has left of a buffer in the context that its scope has made since. */
int64_t zc_queue_rest(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                      size_t taken)
{
    if (!core || !ctx || !sock || !data || taken == 0 || taken >= size)
        return -EINVAL;
    zc_ctx_count_direct(ctx, taken, 0);
    return queue_rest(core, ctx, sock, data + taken, size - taken, 0);
}

/*
 * Like zc_queue (or zc_queue_to, with an address), but tries to hand the bytes over at once.  When the
 * kernel takes all of them, nothing has to be kept, and it returns ZC_SENT_COPIED.
 */
int64_t zc_queue_or_send(zc_ring *ring, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                     uint32_t flags, const char *to, size_t to_size)
{
    if (!ring || !ctx || !sock || !data || (to && sock->kind != ZC_DATAGRAM))
        return -EINVAL;
    struct zc_core *core = ring->core;
    size_t taken = 0;
    if (!zc_may_send(core))
        return -EPERM;
    if (is_direct(core, ctx, sock, size, size, flags)) {
        if (zc_window_full(ctx, size))
            return -EAGAIN;
        struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
        struct msghdr msg = {.msg_name = (void *)(uintptr_t)to,
                             .msg_namelen = (socklen_t)to_size,
                             .msg_iov = &part,
                             .msg_iovlen = 1};
        ssize_t sent = send_now(sock->fd, &msg);
        if (sent < 0 && sent != -EAGAIN && sent != -ENOBUFS) {
            if (sock->kind == ZC_STREAM)
                zc_sock_break(core, sock, (int)-sent, false);
            return sent;
        }
        if (sent >= 0) {
            taken = (size_t)sent;
            zc_count_direct(core, ctx, sock, taken, taken == size);
            if (taken == size)
                return ZC_SENT_COPIED;
        }
    }
    if (to)
        return zc_queue_to(core, ctx, sock, &data, &size, 1, flags, to, to_size);
    if (taken)
        return queue_rest(core, ctx, sock, data + taken, size - taken, flags);
    return zc_queue(core, ctx, sock, data, size, flags);
}

/* Hands over what one train takes, if it would be copied; 0: it is to be queued. */
static int64_t send_train(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                          const char *const *data, const size_t *sizes, size_t count,
                          size_t segment, const char *to, size_t to_size)
{
    struct iovec parts[TRAIN_SEGMENTS];
    struct msghdr msg = {.msg_name = (void *)(uintptr_t)to,
                         .msg_namelen = (socklen_t)to_size,
                         .msg_iov = parts,
                         .msg_iovlen = count};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))];
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        parts[i] = (struct iovec){.iov_base = (void *)(uintptr_t)data[i], .iov_len = sizes[i]};
        if (__builtin_add_overflow(total, sizes[i], &total) || total > TRAIN_BYTES)
            return 0;
    }
    if (!total || !is_direct(core, ctx, sock, total, segment, 0) ||
        (total > segment && total > zc_train_bytes(sock, segment)))
        return 0;
    if (zc_window_full(ctx, total))
        return -EAGAIN;
    if (total > segment)
        zc_mark_train(&msg, control, sizeof(control), (uint32_t)segment);
    ssize_t sent = send_now(sock->fd, &msg);
    if (sent == -EAGAIN || sent == -ENOBUFS)
        return 0;
    if (total > segment && zc_is_train_refused((int)-sent)) {
        zc_refuse_trains(sock, segment);
        return 0;
    }
    if (sent < 0)
        return sent;
    zc_count_direct(core, ctx, sock, total, (uint32_t)((total - 1) / segment + 1));
    return ZC_SENT_COPIED;
}

/*
 * Like zc_queue_segments, but tries to hand the bytes over at once, as zc_queue_or_send does.
 */
int64_t zc_queue_or_send_segments(zc_ring *ring, zc_ctx *ctx, zc_sock *sock,
                                  const char *const *data, const size_t *sizes, size_t count,
                                  size_t segment, uint32_t flags, const char *to, size_t to_size)
{
    if (!ring || !ctx || !sock || !data || !sizes || sock->kind != ZC_DATAGRAM)
        return -EINVAL;
    if (!zc_may_send(ring->core))
        return -EPERM;
    int64_t sent = 0;
    size_t total = 0;
    if (!flags && segment && segment <= UINT16_MAX && count && count <= TRAIN_SEGMENTS)
        sent = send_train(ring->core, ctx, sock, data, sizes, count, segment, to, to_size);
    if (sent)
        return sent;
    for (size_t i = 0; i < count; i++)
        if (__builtin_add_overflow(total, sizes[i], &total))
            return -EMSGSIZE;
    return zc_queue_segments(ring->core, ctx, sock, data, sizes, count, 0, total, segment, flags,
                             to, to_size);
}

/*
 * Like zc_queue_many, but tries to hand each train over at once, as zc_queue_or_send does.  If the
 * kernel takes all of them, it returns ZC_SENT_COPIED; of what is left, the rest is queued.
 */
int64_t zc_queue_or_send_many(zc_ring *ring, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                              const size_t *sizes, size_t count, uint32_t flags, const char *to,
                              size_t to_size, size_t *taken)
{
    if (!ring || !ctx || !sock || !data || !sizes || !count || !taken ||
        sock->kind != ZC_DATAGRAM)
        return -EINVAL;
    if (!zc_may_send(ring->core))
        return -EPERM;
    int64_t sent = ZC_SENT_COPIED;
    size_t at = 0, queued = 0;
    while (!flags && at < count && sent == ZC_SENT_COPIED) {
        size_t bytes, used = zc_next_train(sock, sizes + at, count - at, &bytes);
        sent = send_train(ring->core, ctx, sock, data + at, sizes + at, used, sizes[at], to, to_size);
        if (sent == ZC_SENT_COPIED)
            at += used;
    }
    if (at < count && sent >= 0)
        sent = zc_queue_many(ring->core, ctx, sock, data + at, sizes + at, count - at, flags, to,
                             to_size, &queued);
    *taken = at + queued;
    /* What is refused says so when it comes first. */
    return sent < 0 && at ? ZC_SENT_COPIED : sent;
}
