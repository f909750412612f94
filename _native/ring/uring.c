/*
 * The io_uring driver: requests of the accounting become SQEs, CQEs become completions.
 *
 * One turn reaps what is there, submits what is ready in one enter, and goes on while that makes
 * progress: a send that fits the socket's buffer completes inside the submission, and the next one
 * of that socket can follow in the same turn.
 */
#include <errno.h>
#include <unistd.h>

#include "ring.h"

#define REAP_BATCH 64u

static uint32_t neutral_flags(const struct io_uring_cqe *cqe)
{
    uint32_t flags = 0;
    if (cqe->flags & IORING_CQE_F_MORE)
        flags |= ZC_MORE;
    if (cqe->flags & IORING_CQE_F_NOTIF) {
        flags |= ZC_NOTIF;
        /* Bit 31 of a notification is the usage report, not the sign of an errno. */
        if ((uint32_t)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED)
            flags |= ZC_COPIED;
    }
    return flags;
}

static void reap(struct zc_ring *ring)
{
    if (ring->own_fd >= 0) {
        uint64_t count;
        (void)!read(ring->own_fd, &count, sizeof(count));
    }
    struct io_uring_cqe *cqes[REAP_BATCH];
    unsigned count;
    /*
     * Go on until the queue is empty, or the turn has had its share: one run of deferred task work
     * may leave some of it, and nothing signals the rest.
     */
    while (ring->reaps_left) {
        /* This enters the kernel only when it asks for that: CQ overflow, or task work to run. */
        count = io_uring_peek_batch_cqe(&ring->uring, cqes,
                                        (unsigned)within(ring->reaps_left, 0, REAP_BATCH));
        for (unsigned i = 0; i < count; i++)
            if (cqes[i]->user_data == NOBODY)
                continue;
            else if ((uint32_t)cqes[i]->user_data & RECEIVER_MARK)
                zc_rx_complete(ring, cqes[i]->user_data, cqes[i]->res, cqes[i]->flags);
            else
                zc_complete(ring->core, cqes[i]->user_data, cqes[i]->res, neutral_flags(cqes[i]));
        io_uring_cq_advance(&ring->uring, count);
        ring->reaps_left -= count;
        if (!count)
            return;
    }
}

static void prepare(struct zc_ring *ring, struct io_uring_sqe *sqe, struct zc_req *req)
{
    /*
     * MSG_WAITALL: the kernel goes on after a short send, which saves a round through user space.  A
     * socket that the kernel encrypts answers EOPNOTSUPP to the flag.
     */
    bool whole = req->sock->kind == ZC_STREAM && !req->sock->kernel_tls;
    int flags = MSG_NOSIGNAL | (whole ? MSG_WAITALL : 0);
    unsigned usage = ring->info.report_usage ? IORING_SEND_ZC_REPORT_USAGE : 0;
    int fd = req->sock->fd;
    /* What goes to an address, or is a train, needs the message. */
    bool plain = req->buffers == 1 && !req->msg.msg_name && !req->msg.msg_control;
    if (plain && req->zero_copy) {
        io_uring_prep_send_zc(sqe, fd, req->iov[0].iov_base, req->iov[0].iov_len, flags, usage);
        /* Asked now, since a pool may have been closed after the send was queued. */
        uint32_t region = zc_region_of(ring->core, &req->iov[0]);
        if (region != NO_REGION) {
            sqe->ioprio |= IORING_RECVSEND_FIXED_BUF;
            sqe->buf_index = (uint16_t)region;
            ring->core->stats.registered++;
        }
    } else if (plain)
        io_uring_prep_send(sqe, fd, req->iov[0].iov_base, req->iov[0].iov_len, flags);
    else if (req->zero_copy) {
        io_uring_prep_sendmsg_zc(sqe, fd, &req->msg, (unsigned)flags);
        sqe->ioprio |= usage;
    } else
        io_uring_prep_sendmsg(sqe, fd, &req->msg, (unsigned)flags);
    io_uring_sqe_set_data64(sqe, zc_request_user_data(ring->core, req));
}

/*
 * A send that is copied anyway needs no completion: one call does what the kernel would do during
 * submission.  False: the socket has no room, so the kernel has to wait for it.
 */
static bool send_at_once(struct zc_ring *ring, struct zc_req *req)
{
    ssize_t sent = send_now(req->sock->fd, &req->msg);
    if (sent == -EAGAIN)
        return false;
    zc_complete(ring->core, zc_request_user_data(ring->core, req), (int32_t)sent, 0);
    return true;
}

static int enter(struct zc_ring *ring)
{
    if (io_uring_sq_ready(&ring->uring) == 0)
        return 0;
    ring->submits++;
    return io_uring_submit(&ring->uring);
}

/* Returns how many requests and cancellations went out, or -errno. */
static int submit(struct zc_ring *ring)
{
    struct zc_core *core = ring->core;
    uint64_t user_data;
    int total = 0, taken;
    for (;;) {
        struct zc_req *req;
        zc_rx_submit(ring);
        while (io_uring_sq_space_left(&ring->uring) && zc_next_cancel(core, &user_data) > 0) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
            io_uring_prep_cancel64(sqe, user_data, 0);
            io_uring_sqe_set_data64(sqe, NOBODY);
        }
        while (io_uring_sq_space_left(&ring->uring) && (req = zc_build_request(core)))
            /* Datagrams keep their order where the kernel does: none overtakes those in flight. */
            if (!req->zero_copy && req->sock->in_flight == 1 && send_at_once(ring, req))
                total++;
            else
                prepare(ring, io_uring_get_sqe(&ring->uring), req);
        taken = enter(ring);
        if (taken <= 0)
            break;
        total += taken;
        if (link_alone(&core->ready) && link_alone(&core->cancels) &&
            link_alone(&ring->receiver_work))
            break;
    }
    return taken < 0 ? taken : total;
}

static int set_region(struct zc_ring *ring, uint32_t index, const char *memory, size_t size)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)memory, .iov_len = size};
    __u64 tag = 0;
    if (!ring->has_buffer_table) {
        int err = io_uring_register_buffers_sparse(&ring->uring, MAX_REGIONS);
        if (err < 0)
            return err;
        ring->has_buffer_table = true;
    }
    int done = io_uring_register_buffers_update_tag(&ring->uring, index, &iov, &tag, 1);
    return done == 1 ? 0 : done < 0 ? done : -EIO;
}

static void close_uring(struct zc_ring *ring)
{
    io_uring_queue_exit(&ring->uring);
    zc_rx_close(ring);
}

const struct zc_driver zc_uring_driver = {
    .submit = submit,
    .reap = reap,
    .set_region = set_region,
    .close = close_uring,
};
