/*
 * Setting an io_uring up: flags, opcodes, and what only a try can tell.
 *
 * Flags are negotiated: all wanted ones first, then without those of newer kernels, since a kernel
 * answers EINVAL to a flag that it does not know.  SUBMIT_ALL is 5.18, COOP_TASKRUN 5.19,
 * SINGLE_ISSUER 6.0, DEFER_TASKRUN 6.1.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "ring.h"

#define PROBED_OPCODES 256
#define LEAST_ENTRIES 8u
#define CQES_A_REQUEST 2u /* a result and a notification */

static int set_up(struct zc_ring *ring, uint32_t entries, uint32_t flags)
{
    struct io_uring_params params;
    memset(&params, 0, sizeof(params));
    params.flags = flags | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP;
    params.cq_entries = entries * CQES_A_REQUEST;
    int err = io_uring_queue_init_params(entries, &ring->uring, &params);
    if (err < 0)
        return err;
    ring->info.setup_flags = params.flags;
    ring->info.sq_entries = params.sq_entries;
    ring->info.cq_entries = params.cq_entries;
    return 0;
}

static int set_up_negotiated(struct zc_ring *ring, uint32_t entries, int wake)
{
    static const uint32_t by_ring_fd[] = {
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SINGLE_ISSUER |
            IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG | IORING_SETUP_SUBMIT_ALL,
        IORING_SETUP_SUBMIT_ALL,
        0,
    };
    static const uint32_t by_eventfd[] = {IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                                          IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_SUBMIT_ALL};
    const uint32_t *flags = wake == ZC_WAKE_EVENTFD ? by_eventfd : by_ring_fd;
    size_t choices = wake == ZC_WAKE_EVENTFD ? 1 : sizeof(by_ring_fd) / sizeof(*by_ring_fd);
    int err = -EINVAL;
    for (size_t i = 0; err == -EINVAL && i < choices; i++)
        err = set_up(ring, entries, flags[i]);
    /* The queues are charged to RLIMIT_MEMLOCK: with a low limit a smaller ring is tried. */
    return err == -ENOMEM && entries > LEAST_ENTRIES
               ? set_up_negotiated(ring, entries / 2 > LEAST_ENTRIES ? entries / 2 : LEAST_ENTRIES,
                                   wake)
               : err;
}

static int probe_opcodes(struct zc_ring *ring)
{
    static const int needed[] = {IORING_OP_SEND_ZC, IORING_OP_SENDMSG_ZC, IORING_OP_SENDMSG,
                                 IORING_OP_ASYNC_CANCEL};
    struct io_uring_probe *probe =
        calloc(1, sizeof(*probe) + PROBED_OPCODES * sizeof(struct io_uring_probe_op));
    if (!probe)
        return -ENOMEM;
    int err = io_uring_register_probe(&ring->uring, probe, PROBED_OPCODES);
    for (size_t i = 0; err >= 0 && i < sizeof(needed) / sizeof(*needed); i++)
        if (!io_uring_opcode_supported(probe, needed[i]))
            err = -EOPNOTSUPP;
    free(probe);
    return err;
}

/*
 * IORING_SEND_ZC_REPORT_USAGE is 6.2, and no probe reports it.  So a zero-copy send to a UNIX socket,
 * which cannot zero-copy, is tried: EOPNOTSUPP says that the flag is known, EINVAL that it is not.
 */
static int probe_report_usage(struct zc_ring *ring)
{
    int pair[2], known = 0;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -errno;
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    io_uring_prep_send_zc(sqe, pair[0], "", 1, MSG_DONTWAIT | MSG_NOSIGNAL,
                          IORING_SEND_ZC_REPORT_USAGE);
    io_uring_sqe_set_data64(sqe, NOBODY);
    int err = io_uring_submit(&ring->uring);
    struct io_uring_cqe *cqe = NULL;
    bool more = err == 1;
    while (more) {
        do
            err = io_uring_wait_cqe(&ring->uring, &cqe);
        while (err == -EINTR);
        if (err < 0)
            break;
        if (!(cqe->flags & IORING_CQE_F_NOTIF))
            known = cqe->res != -EINVAL;
        more = cqe->flags & IORING_CQE_F_MORE;
        io_uring_cqe_seen(&ring->uring, cqe);
    }
    close(pair[0]);
    close(pair[1]);
    return err < 0 ? err : known;
}

/* On failure `step` names what was refused. */
int zc_uring_open(struct zc_ring *ring, uint32_t entries, int wake, const char **step)
{
    *step = "io_uring_setup";
    int err = set_up_negotiated(ring, entries, wake);
    if (err < 0)
        return err;
    /* The mappings must not reach a forked child: its writes would corrupt the parent's queues. */
    *step = "ring_dontfork";
    err = io_uring_ring_dontfork(&ring->uring);
    if (err < 0)
        goto fail;
    *step = "probe";
    err = probe_opcodes(ring);
    if (err < 0)
        goto fail;
    *step = "report_usage";
    err = probe_report_usage(ring);
    if (err < 0)
        goto fail;
    ring->info.report_usage = err;
    ring->info.wake_fd = ring->uring.ring_fd;
    if (wake == ZC_WAKE_EVENTFD) {
        *step = "eventfd";
        ring->own_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        err = ring->own_fd < 0 ? -errno : io_uring_register_eventfd(&ring->uring, ring->own_fd);
        if (err < 0)
            goto fail;
        ring->info.wake_fd = ring->own_fd;
    }
    /* Saves a descriptor look-up at every enter, if the kernel has it (5.18). */
    (void)io_uring_register_ring_fd(&ring->uring);
    return 0;
fail:
    io_uring_queue_exit(&ring->uring);
    return err;
}
