/*
 * Sends that need no queue: what would be copied anyway, on a socket with nothing before it, is
 * handed to the kernel at once by one non-blocking send.
 *
 * Through the ring such a send would cost a submission, a completion, and a wake-up of the event
 * loop to find that completion.  What the socket does not take is queued like any other send.
 */
#include <errno.h>
#include <string.h>

#include "ring.h"

static bool is_direct(const struct zc_core *core, const struct zc_ctx *ctx,
                      const struct zc_sock *sock, size_t size, uint32_t flags)
{
    return !sock->suspended && !sock->head && !sock->in_flight && !sock->blocked && !sock->error &&
           !(flags & ~(uint32_t)ZC_SEND_MUTABLE) &&
           (size < ctx->alone || !zc_goes_zero_copy(core, ctx, sock, size, false));
}

/* The whole send was taken. */
static void count(struct zc_core *core, struct zc_ctx *ctx)
{
    core->stats.sends++;
    core->stats.copied++;
    ctx->stats.sends++;
    ctx->stats.copied++;
}

/*
 * Like zc_queue (or zc_queue_to, with an address), but tries to hand the bytes over at once.  When the
 * kernel takes all of them there is nothing to keep, and ZC_SENT_COPIED is what it returns.
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
    if (is_direct(core, ctx, sock, size, flags)) {
        if (zc_window_full(ctx, size))
            return -EAGAIN;
        ssize_t sent;
        do
            sent = sendto(sock->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL,
                          (const struct sockaddr *)(const void *)to, (socklen_t)to_size);
        while (sent < 0 && errno == EINTR);
        if (sent < 0 && errno != EAGAIN && errno != ENOBUFS) {
            int error = errno;
            if (sock->kind == ZC_STREAM)
                zc_sock_break(core, sock, error, false);
            return -error;
        }
        if (sock->copy_left && sent >= 0)
            sock->copy_left--;
        if (core->copy_left && sent >= 0)
            core->copy_left--;
        if (sent >= 0) {
            taken = (size_t)sent;
            core->stats.bytes_sent += taken;
            ctx->stats.bytes_sent += taken;
        }
        if (sent >= 0 && taken == size) {
            count(core, ctx);
            return ZC_SENT_COPIED;
        }
    }
    if (to)
        return zc_queue_to(core, ctx, sock, &data, &size, 1, flags, to, to_size);
    int64_t queued = zc_queue(core, ctx, sock, data + taken, size - taken, flags);
    if (queued < 0 && taken)
        /* Memory is out, in the middle of what the caller takes for one send. */
        zc_sock_break(core, sock, ENOMEM, false);
    else if (taken) {
        struct zc_send *rest = container(sock->sends.prev, struct zc_send, sock_link);
        rest->copied = rest->continues = true;
    }
    return queued;
}

/* Whether bytes of the socket are queued or in flight: 0 means that the kernel has all of them. */
int zc_sock_unsent(const zc_sock *sock)
{
    if (!sock)
        return -EINVAL;
    return sock->head != NULL || sock->in_flight > 0;
}

/* Tells once more that a socket is idle, if it is; returns whether it is. */
int zc_sock_tell_idle(zc_core *core, zc_sock *sock)
{
    if (!core || !sock)
        return -EINVAL;
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests))
        return 0;
    link_remove(&sock->linger_link);
    zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
    return 1;
}

/* Resets the connection of a stream: what is queued is lost, what is held comes back at once. */
int zc_sock_reset(zc_core *core, zc_sock *sock, int error)
{
    if (!core || !sock || error <= 0 || sock->kind != ZC_STREAM)
        return -EINVAL;
    zc_sock_break(core, sock, error, true);
    return 0;
}
