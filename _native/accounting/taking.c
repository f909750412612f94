/*
 * Taking sends: what is refused, which generation a send joins, and its place in the queue of its
 * socket.
 *
 * A small send is written into a slab of staging memory.  A staged run is an ordinary send whose
 * buffer is a slab.  It grows while it is the last in its socket's queue and its generation is open;
 * what does not fit into it begins the next run.
 */
#include <errno.h>
#include <string.h>

#include "accounting.h"

/* What the caller gets for a send that was queued. */
static int64_t queued_result(struct zc_core *core, struct zc_send *send)
{
    int64_t sent = (int64_t)(send->gen->number << ZC_SENT_SHIFT);
    size_t enough =
        send->slab ? TURN_BYTES_STAGED : batch_bytes(send->gen->ctx, TURN_BYTES, TURN_BYTES_MOST);
    if (core->waiting_bytes >= enough || core->waiting_sends >= TURN_SENDS)
        sent |= ZC_SENT_TURN;
    else if (core->waiting_sends % LOOK_SENDS == 1)
        sent |= ZC_SENT_KICK;
    return send->slab ? sent | ZC_SENT_COPIED : sent;
}

/* Only the thread that opened the ring may send; a forked child may not. */
bool zc_may_send(const struct zc_core *core)
{
    return !core->disowned && pthread_equal(core->owner, pthread_self());
}

/* Whether a send does not fit into the window; one larger than the window is admitted on its own. */
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

/*
 * Takes over the parts of a send, without the empty ones; neighbours in one region become one part.
 * `send->buffers` says how many parts there is room for, and afterwards how many there are.
 */
static void take_parts(struct zc_core *core, struct zc_send *send, const char *const *data,
                       const size_t *sizes, size_t count)
{
    uint32_t used = 0, last_region = NO_REGION;
    size_t pages = 0;
    for (size_t i = 0; i < count; i++) {
        if (!sizes[i])
            continue;
        struct iovec part = {.iov_base = (void *)(uintptr_t)data[i], .iov_len = sizes[i]};
        struct iovec *last = used ? &send->iov[used - 1] : NULL;
        uint32_t region = core->regions_used ? zc_region_of(core, &part) : NO_REGION;
        uintptr_t start = (uintptr_t)data[i];
        pages += (start + sizes[i] - 1) / PAGE_BYTES - start / PAGE_BYTES + 1;
        send->registered |= region != NO_REGION;
        if (last && region != NO_REGION && region == last_region &&
            (char *)last->iov_base + last->iov_len == part.iov_base)
            last->iov_len += part.iov_len;
        else
            send->iov[used++] = part;
        last_region = region;
    }
    if (!used) /* an empty datagram */
        send->iov[used++] = (struct iovec){.iov_base = (void *)(uintptr_t)data[0]};
    send->buffers = used;
    send->region = used == 1 ? last_region : NO_REGION;
    send->force_copy = send->sock->kind == ZC_DATAGRAM && pages > DATAGRAM_PAGES;
}

/* Queues parts of `total` bytes as one send of the open generation; there may be no address. */
int64_t zc_enqueue(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                   const char *const *data, const size_t *sizes, size_t count, size_t total,
                   uint32_t flags, const char *to, size_t to_size)
{
    struct zc_send *send = zc_send_new(core, ctx, NULL, sock, count, to, to_size);
    if (!send)
        return -ENOMEM;
    take_parts(core, send, data, sizes, count);
    send->flags = flags;
    zc_sock_append(core, send);
    zc_send_grow(core, send, total, 1);
    send->ticket = ctx->stats.sends;
    return queued_result(core, send);
}

/* The run at the end of a socket's queue, if more bytes of this context can be added to it. */
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
 * Writes a send into staging memory.  ENOSPC: no slab is free, or the socket has its share, which
 * keeps a stalled peer from starving others; the send is then queued like a large one.
 */
static int64_t stage_send(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
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
        char *slab = sock->slabs < STAGE_SHARE ? zc_take_slab(&core->stage) : NULL;
        if (!slab)
            return -ENOSPC;
        struct zc_send *rest = zc_send_new(core, ctx, NULL, sock, 1, NULL, 0);
        if (!rest) {
            zc_give_slab(&core->stage, slab);
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
        zc_sock_append(core, run);
    }
    size_t part = size > first ? size - first : first;
    memcpy((char *)run->one.iov_base + run->one.iov_len, data + (size - part), part);
    zc_send_grow(core, run, part, 1);
    return queued_result(core, run);
}

static bool is_staged(const struct zc_core *core, const struct zc_ctx *ctx,
                      const struct zc_sock *sock, size_t count, size_t total, uint32_t flags)
{
    return core->stage.memory && ctx->policy != ZC_POLICY_NEVER && total < ctx->threshold &&
           sock->kind == ZC_STREAM && count == 1 && !(flags & ~(uint32_t)ZC_SEND_MUTABLE);
}

static int64_t queue_parts(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                           const char *const *data, const size_t *sizes, size_t count,
                           uint32_t flags, const char *to, size_t to_size)
{
    size_t total = 0;
    if (!core || !ctx || !sock || !data || !sizes || count == 0)
        return -EINVAL;
    if (!zc_may_send(core))
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
        sent = stage_send(core, ctx, sock, data[0], total);
    if (sent == -ENOSPC)
        sent = zc_enqueue(core, ctx, sock, data, sizes, count, total, flags, to, to_size);
    zc_gen_roll(core, ctx);
    return sent;
}

int64_t zc_queue_vector(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                 const size_t *sizes, size_t count, uint32_t flags)
{
    return queue_parts(core, ctx, sock, data, sizes, count, flags, NULL, 0);
}

int64_t zc_queue(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                uint32_t flags)
{
    return zc_queue_vector(core, ctx, sock, &data, &size, 1, flags);
}

/* One datagram to an address, a struct sockaddr of `to_size` bytes. */
int64_t zc_queue_to(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                   const size_t *sizes, size_t count, uint32_t flags, const char *to,
                   size_t to_size)
{
    if (!core || !sock || sock->kind != ZC_DATAGRAM || !to ||
        to_size > sizeof(struct sockaddr_storage))
        return -EINVAL;
    return queue_parts(core, ctx, sock, data, sizes, count, flags, to, to_size);
}

/* Counts bytes that were sent directly (see zc_count_direct) in a context. */
int zc_ctx_count_direct(zc_ctx *ctx, size_t taken, uint32_t sends)
{
    if (!ctx)
        return -EINVAL;
    ctx->stats.bytes_sent += taken;
    ctx->stats.sends += sends;
    ctx->stats.copied += sends;
    return 0;
}

/*
 * Counts bytes that the kernel took without a queue, and the sends that end with them.  `ctx` may be
 * NULL.
 */
void zc_count_direct(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock, size_t taken,
                     uint32_t sends)
{
    zc_sock_count_copy(core, sock);
    core->stats.bytes_sent += taken;
    core->stats.sends += sends;
    core->stats.copied += sends;
    if (sock->kernel_tls)
        core->stats.kernel_tls += sends;
    zc_ctx_count_direct(ctx, taken, sends);
}

/*
 * Queues one buffer on many sockets.  The window admits it as a whole and counts it once, since it
 * bounds memory.  errors[i] is 0, or the errno for which nothing was queued on socks[i]; EPIPE: it
 * was queued on none.
 */
int64_t zc_broadcast(zc_core *core, zc_ctx *ctx, zc_sock *const *socks, size_t count,
                     const char *data, size_t size, uint32_t flags, int32_t *errors)
{
    if (!core || !ctx || !socks || !errors || count == 0 || size == 0 || size > SSIZE_MAX)
        return -EINVAL;
    for (size_t i = 0; i < count; i++)
        if (!socks[i])
            return -EINVAL;
    if (!zc_may_send(core))
        return -EPERM;
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
            one = zc_enqueue(core, ctx, socks[i], &data, &size, 1, size, flags, NULL, 0);
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
    /* Not earlier: a broadcast is in one generation, which holds one reference to the buffer. */
    zc_gen_roll(core, ctx);
    return sent < 0 ? sent : sent | turn;
}
