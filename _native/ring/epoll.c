/*
 * The drivers without io_uring: MSG_ZEROCOPY with the socket's error queue, and plain copying.
 *
 * Each request is sent at once, with one non-blocking sendmsg.  A socket that takes no more is
 * blocked until it is writable.  Notifications of MSG_ZEROCOPY are ranges of ids in the error queue.
 *
 * An unread error queue is a level-triggered EPOLLERR to everybody who polls the socket.  So the
 * sockets are in an inner epoll of this ring, edge-triggered, and the event loop polls only the
 * descriptor of that epoll.  It works like an io_uring: one descriptor to wait for, a batch to take.
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
 * How large a datagram may be to leave in one piece; 0 if the socket has no peer, so that the path is
 * not known.  The kernel copies a datagram that it must cut into fragments, and yet ties its
 * notification to the packet, which may lie in the queue of a local receiver that never reads.
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
 * Stops trusting the numbers that a fork has made uncertain: a child may have sent on any socket that
 * existed.  Sockets attached later are not concerned, nor is what was learned of a socket before
 * (zc_learned.forks).
 */
static void heed_forks(struct zc_ring *ring)
{
    uint64_t forks = zc_forks();
    if (ring->forks == forks)
        return;
    ring->forks = forks;
    for (struct link *l = ring->core->sockets.next; l != &ring->core->sockets; l = l->next) {
        struct zc_sock *sock = container(l, struct zc_sock, link);
        if (sock->forks != forks)
            zc_sock_lose_count(sock);
    }
}

/*
 * The kernel counts the MSG_ZEROCOPY sends of a socket from 0 and never tells the count.  If the
 * option is off, nobody can have sent; if this ring switched it on earlier, it remembers the count.
 * If somebody else switched it on, the socket is sent to by copying: taking their notifications for
 * our own would give a buffer back while the kernel reads it.  The option is never switched off
 * again: another ring or process that has the socket would then count from 0.
 */
static int attach_zero_copy(struct zc_ring *ring, struct zc_sock *sock)
{
    int was_on = 0, on = 1;
    socklen_t size = sizeof(was_on);
    heed_forks(ring);
    if (sock->can_zero_copy &&
        (getsockopt(sock->fd, SOL_SOCKET, SO_ZEROCOPY, &was_on, &size) < 0 ||
         (was_on && !sock->knows_next_number) ||
         setsockopt(sock->fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0))
        sock->can_zero_copy = false;
    sock->knows_next_number = sock->reads_errors = sock->can_zero_copy;
    if (sock->kind == ZC_DATAGRAM)
        sock->most_zero_copy = unfragmented(sock->fd);
    return watch(ring, sock, EPOLL_CTL_ADD);
}

/* The registration belongs to the open file, which may outlive this descriptor. */
static void detach(struct zc_ring *ring, int fd)
{
    epoll_ctl(ring->own_fd, EPOLL_CTL_DEL, fd, NULL);
}

/*
 * Takes a range of numbers.  A number that was not counted yet says that somebody else sends with
 * MSG_ZEROCOPY on this socket.
 */
static void take_range(struct zc_ring *ring, struct zc_sock *sock,
                       const struct sock_extended_err *err)
{
    if (sock->knows_next_number && (int32_t)(err->ee_data - sock->next_number) >= 0)
        zc_sock_lose_count(sock);
    zc_notify_range(ring->core, sock, err->ee_info, err->ee_data,
                    err->ee_code & SO_EE_CODE_ZEROCOPY_COPIED);
}

/* Takes everything out of a socket's error queue. */
static void drain_errors(struct zc_ring *ring, struct zc_sock *sock)
{
    /* Time stamps, if the program has asked for them, come before the notifications. */
    union {
        char bytes[512];
        struct cmsghdr align;
    } control;
    for (;;) {
        struct msghdr msg = {.msg_control = control.bytes, .msg_controllen = sizeof(control)};
        if (recvmsg(sock->fd, &msg, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
            if (errno == EINTR)
                continue;
            return;
        }
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
            struct sock_extended_err err;
            if (c->cmsg_len < CMSG_LEN(sizeof(err)) ||
                (!(c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR) &&
                 !(c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_RECVERR)))
                continue;
            memcpy(&err, CMSG_DATA(c), sizeof(err));
            if (err.ee_origin == SO_EE_ORIGIN_ZEROCOPY && err.ee_errno == 0)
                take_range(ring, sock, &err);
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
            if (events[i].events & EPOLLERR && sock->reads_errors)
                drain_errors(ring, sock);
            /* An error or a hang-up makes the waiting send fail, which is how it is reported. */
            if (sock->blocked && events[i].events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
                zc_sock_unblock(ring->core, sock);
                watch(ring, sock, EPOLL_CTL_MOD);
            }
        }
    } while (count == REAP_BATCH);
}

/* Whether UDP reports a full queue of a device; without this option it reports success. */
static bool tells_full_queues(int fd)
{
    int domain = 0, v4 = 1, v6 = 0;
    socklen_t size = sizeof(int);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 ||
        getsockopt(fd, IPPROTO_IP, IP_RECVERR, &v4, &size) < 0)
        return true;
    /* Its peer may have an IPv4 address: then the option of IPv4 counts. */
    if (domain == AF_INET6 && getsockopt(fd, IPPROTO_IPV6, IPV6_RECVERR, &v6, &size) < 0)
        return true;
    return v4 || v6;
}

/*
 * Whether it is certain that a failed send has left the count as it was.
 *
 * The number is taken by msg_zerocopy_realloc (net/core/skbuff.c), before any byte.
 *
 * On TCP (tcp_sendmsg_locked) each error gives it back (net_zcopy_put_abort), as nothing was queued;
 * with anything queued the send is a short one, which keeps its number and has its notification.
 *
 * On UDP (udp_sendmsg, ip_make_skb, __ip_append_data, and the same for IPv6) an error while the packet
 * is being made gives it back, or comes before it is taken.  EAGAIN, no room in the socket's buffer,
 * comes only from there, and so does ENOBUFS (net.core.optmem_max, RLIMIT_MEMLOCK) unless the socket
 * has IP_RECVERR.  Once the packet is handed on (udp_send_skb, ip_send_skb) nothing gives the number
 * back: if the packet is dropped (ENOBUFS, the queue of the device; EPERM, a filter; ECONNREFUSED,
 * which may be SELinux as well as an earlier ICMP message; EMSGSIZE, EINVAL...), it is notified of.
 */
static bool gave_back(const struct zc_sock *sock, int error)
{
    return sock->kind == ZC_STREAM || error == EAGAIN ||
           (error == ENOBUFS && !tells_full_queues(sock->fd));
}

/* Does one sendmsg with MSG_ZEROCOPY, and gives the request its number if bytes were taken. */
static ssize_t send_zero_copy(struct zc_ring *ring, struct zc_req *req)
{
    struct zc_sock *sock = req->sock;
    for (int tries = 0;; tries++) {
        ssize_t sent = sendmsg(sock->fd, &req->msg, MSG_DONTWAIT | MSG_NOSIGNAL | MSG_ZEROCOPY);
        int error = errno;
        if (sent >= 0) {
            zc_number(ring->core, req, sock->next_number++);
            return sent;
        }
        if (!gave_back(sock, error)) {
            zc_sock_lose_count(sock);
            /* If there is a notification of it, it has come by now. */
            drain_errors(ring, sock);
            return -error;
        }
        if (error == EINTR)
            continue;
        /* Too many notifications are due (net.core.optmem_max): make room and try once more. */
        if (error != ENOBUFS || tries)
            return -error;
        drain_errors(ring, sock);
    }
}

/* Has the inner epoll report when a socket has room; returns EAGAIN, or why that is not possible. */
static ssize_t wait_for_room(struct zc_ring *ring, struct zc_sock *sock)
{
    zc_sock_block(sock);
    int err = watch(ring, sock, EPOLL_CTL_MOD);
    if (err == 0)
        return -EAGAIN;
    sock->blocked = false;
    return err;
}

/* Completes each request before it builds the next. */
static int submit(struct zc_ring *ring)
{
    struct zc_core *core = ring->core;
    struct zc_req *req;
    int total = 0;
    heed_forks(ring);
    for (; (req = zc_build_request(core)); total++) {
        uint64_t user_data = zc_request_user_data(core, req);
        ring->submits++;
        ssize_t sent = req->zero_copy ? send_zero_copy(ring, req) : send_now(req->sock->fd, &req->msg);
        if (sent == -EAGAIN)
            sent = wait_for_room(ring, req->sock);
        zc_complete(core, user_data, (int32_t)sent, req->has_number ? ZC_MORE : 0);
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

/* Nothing is held: a buffer is released when its bytes were taken. */
const struct zc_driver zc_copy_driver = {
    .submit = submit,
    .reap = reap,
    .attach = attach_copy,
    .detach = detach,
};
