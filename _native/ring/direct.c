/*
 * Sends that need no queue: what would be copied anyway, on a socket with nothing before it, is
 * handed to the kernel at once by one non-blocking send.
 *
 * Through the ring such a send would cost a submission, a completion, and a wake-up of the event
 * loop to find that completion.  What the socket does not take is queued like any other send.
 */
#include <errno.h>

#include "ring.h"

static bool is_direct(const struct zc_core *core, const struct zc_ctx *ctx,
                      const struct zc_sock *sock, size_t size, uint32_t flags)
{
    return !sock->suspended && !sock->head && !sock->in_flight && !sock->blocked && !sock->error &&
           !(flags & ~(uint32_t)ZC_SEND_MUTABLE) &&
           (size < ctx->alone || !zc_goes_zero_copy(core, ctx, sock, size, false));
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
