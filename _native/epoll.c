/*
 * The drivers without io_uring: MSG_ZEROCOPY with the socket's error queue, and plain copying.
 *
 * Each request is sent at once, with one non-blocking sendmsg.  A socket that takes no more is
 * blocked until it is writable.  Notifications of MSG_ZEROCOPY are ranges of ids in the error queue.
 *
 * An unread error queue is a level-triggered EPOLLERR to everybody who polls the socket.  Here the
 * sockets are in an inner epoll of this ring, edge-triggered, and the event loop polls only that
 * one's descriptor: the same shape as an io_uring, one descriptor to wait for, a batch to take.
 */
#include <errno.h>
#include <time.h> /* linux/errqueue.h uses struct timespec */

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "ring.h"

#ifndef SO_EE_CODE_ZEROCOPY_COPIED
#define SO_EE_CODE_ZEROCOPY_COPIED 1
#endif

#define REAP_BATCH 64

static int watch(struct zc_ring *ring, struct zc_sock *sock, int operation)
{
    /* EPOLLERR is always reported; OUT only while something waits for room. */
    struct epoll_event event = {.events = EPOLLET | (sock->blocked ? EPOLLOUT : 0u),
                                .data.ptr = sock};
    return epoll_ctl(ring->own_fd, operation, sock->fd, &event) < 0 ? -errno : 0;
}

static int attach_copy(struct zc_ring *ring, struct zc_sock *sock)
{
    sock->can_zero_copy = false;
    return watch(ring, sock, EPOLL_CTL_ADD);
}

/*
 * How large a datagram may be to leave in one piece; 0 if the path is not known, the socket having no
 * peer.  The kernel copies what it must cut into fragments, and yet ties its notification to the
 * packet, which may lie in the queue of a receiver on this machine that never reads.
 */
static size_t unfragmented(int fd)
{
    int domain = 0, mtu = 0;
    socklen_t size = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0)
        return 0;
    bool v6 = domain == AF_INET6;
    size = sizeof(mtu);
    if (getsockopt(fd, v6 ? IPPROTO_IPV6 : IPPROTO_IP, v6 ? IPV6_MTU : IP_MTU, &mtu, &size) < 0)
        return 0;
    int headers = (v6 ? 40 : 20) + 8;
    return mtu > headers ? (size_t)(mtu - headers) : 0;
}

/*
 * The kernel counts the MSG_ZEROCOPY sends of a socket from 0 and never tells the count.  Where the
 * option is off nobody can have sent, and where this ring switched it on earlier it remembers.  A
 * socket on which somebody else did is sent to by copying: taking his notifications for ours would
 * give a buffer back while the kernel reads it.
 */
static int attach_zero_copy(struct zc_ring *ring, struct zc_sock *sock)
{
    int was_on = 0, on = 1;
    socklen_t size = sizeof(was_on);
    if (sock->can_zero_copy &&
        (getsockopt(sock->fd, SOL_SOCKET, SO_ZEROCOPY, &was_on, &size) < 0 ||
         (was_on && !sock->knows_next_id) ||
         setsockopt(sock->fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0))
        sock->can_zero_copy = false;
    sock->knows_next_id = sock->can_zero_copy;
    if (sock->kind == ZC_DATAGRAM)
        sock->most_zero_copy = unfragmented(sock->fd);
    return watch(ring, sock, EPOLL_CTL_ADD);
}

/* The registration belongs to the open connection, which may outlive this descriptor of it. */
static void detach(struct zc_ring *ring, int fd)
{
    epoll_ctl(ring->own_fd, EPOLL_CTL_DEL, fd, NULL);
}

/* Takes everything out of a socket's error queue. */
static void drain_errors(struct zc_ring *ring, struct zc_sock *sock)
{
    union {
        char bytes[CMSG_SPACE(sizeof(struct sock_extended_err) + sizeof(struct sockaddr_in6))];
        struct cmsghdr align;
    } control;
    for (;;) {
        struct msghdr msg = {.msg_control = control.bytes, .msg_controllen = sizeof(control)};
        if (recvmsg(sock->fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return;
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            struct sock_extended_err err;
            if (!(c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) &&
                !(c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR))
                continue;
            memcpy(&err, CMSG_DATA(c), sizeof(err));
            if (err.ee_origin == SO_EE_ORIGIN_ZEROCOPY && err.ee_errno == 0)
                zc_notify_range(ring->core, sock, err.ee_info, err.ee_data,
                                err.ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
        }
    }
}

static void reap(struct zc_ring *ring)
{
    struct epoll_event events[REAP_BATCH];
    int count;
    do {
        if (!ring->reaps_left)
            return;
        count = epoll_wait(ring->own_fd, events, (int)within(ring->reaps_left, 1, REAP_BATCH), 0);
        if (count > 0)
            ring->reaps_left -= (uint32_t)count;
        for (int i = 0; i < count; i++) {
            struct zc_sock *sock = events[i].data.ptr;
            /* A UNIX socket takes MSG_ERRQUEUE for an ordinary receive. */
            if (events[i].events & EPOLLERR && sock->knows_next_id)
                drain_errors(ring, sock);
            /* An error or a hang-up makes the waiting send fail, which is how it is reported. */
            if (sock->blocked && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
                zc_sock_unblock(ring->core, sock);
                watch(ring, sock, EPOLL_CTL_MOD);
            }
        }
    } while (count == REAP_BATCH);
}

static ssize_t send_now(struct zc_ring *ring, struct zc_req *req)
{
    int flags = MSG_DONTWAIT | MSG_NOSIGNAL | (req->zero_copy ? MSG_ZEROCOPY : 0);
    for (int tries = 0;; tries++) {
        ssize_t sent = sendmsg(req->sock->fd, &req->msg, flags);
        if (sent >= 0)
            return sent;
        if (errno == EINTR)
            continue;
        /* Too many notifications are due (net.core.optmem_max): make room and ask once more. */
        if (errno != ENOBUFS || !req->zero_copy || tries)
            return -errno;
        drain_errors(ring, req->sock);
    }
}

/* Completes every request that it builds before it builds the next. */
static int submit(struct zc_ring *ring)
{
    struct zc_core *core = ring->core;
    struct zc_req *req;
    int total = 0;
    for (; (req = zc_build_request(core)); total++) {
        struct zc_sock *sock = req->sock;
        uint64_t user_data = zc_request_user_data(core, req);
        ring->submits++;
        ssize_t sent = send_now(ring, req);
        if (sent == -EAGAIN) {
            zc_sock_block(sock);
            watch(ring, sock, EPOLL_CTL_MOD);
        }
        if (sent >= 0 && req->zero_copy)
            req->id = sock->next_id++;
        zc_complete(core, user_data, (int32_t)sent, sent >= 0 && req->zero_copy ? ZC_MORE : 0);
    }
    return total;
}

int zc_epoll_open(struct zc_ring *ring, bool zero_copy, const char **step)
{
    if (zero_copy) {
        int on = 1, sock = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        *step = "SO_ZEROCOPY";
        if (sock < 0)
            return -errno;
        int err = setsockopt(sock, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0 ? -errno : 0;
        close(sock);
        if (err < 0)
            return err;
        ring->info.report_usage = 1;
    }
    *step = "epoll_create1";
    ring->own_fd = epoll_create1(EPOLL_CLOEXEC);
    ring->info.wake_fd = ring->own_fd;
    return ring->own_fd < 0 ? -errno : 0;
}

const struct zc_driver zc_msg_zerocopy_driver = {
    .submit = submit,
    .reap = reap,
    .attach = attach_zero_copy,
    .detach = detach,
    .tells_by_socket = true,
};

/* Nothing is held: a buffer is the caller's again when its bytes were accepted. */
const struct zc_driver zc_copy_driver = {
    .submit = submit,
    .reap = reap,
    .attach = attach_copy,
    .detach = detach,
};
