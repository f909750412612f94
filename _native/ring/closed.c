/*
 * Sockets that the program has closed while sends of them are under way.
 *
 * Plain sockets, and streams of other libraries, do not tell when they are closed, and the ring's
 * duplicate keeps their connections up.  So the ring looks, a few times in a tenth of a second,
 * whether the program still has a descriptor of each.  If it has none, what is queued still goes
 * out; then the connection ends as the kernel would have ended it.
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "ring.h"

/* Linux 6.10: whether two descriptors are of one open file. */
#ifndef F_DUPFD_QUERY
#define F_DUPFD_QUERY (1024 + 3)
#endif

/* At most this many sockets are looked at in one go... */
#define LOOKS_MOST 1024u
/* ...and at most this many descriptors of the process. */
#define SCANNED_MOST 2048

struct wanted {
    uint64_t cookie;
    struct zc_sock *sock;
};

/* The kernel's number for a socket, which is never used for another; 0: it is not a socket. */
static uint64_t cookie_of(int fd)
{
    uint64_t cookie = 0;
    socklen_t size = sizeof(cookie);
    return getsockopt(fd, SOL_SOCKET, SO_COOKIE, &cookie, &size) == 0 ? cookie : 0;
}

/* Whether the program's descriptor is still this socket. */
static bool program_has(const struct zc_sock *sock)
{
    if (sock->program_fd < 0)
        return false;
    int same = fcntl(sock->fd, F_DUPFD_QUERY, sock->program_fd);
    if (same >= 0 || errno != EINVAL)
        return same == 1;
    uint64_t cookie = cookie_of(sock->fd);
    return !cookie || cookie_of(sock->program_fd) == cookie;
}

/* All descriptors of this process are below this number; 0: /proc does not tell. */
static int numbers_end(void)
{
    char line[128];
    int end = 0;
    FILE *status = fopen("/proc/self/status", "re");
    while (status && !end && fgets(line, sizeof(line), status))
        if (sscanf(line, "FDSize: %d", &end) != 1)
            end = 0;
    if (status)
        fclose(status);
    return end;
}

static int compare(const void *a, const void *b)
{
    const struct wanted *x = a, *y = b;
    return x->cookie < y->cookie ? -1 : x->cookie > y->cookie;
}

/*
 * Looks for other descriptors of the lost sockets, which the ring may not know; another ring's
 * duplicate counts as well.  The next tick goes on where this one stops; true: all were looked at.
 */
static bool scan(struct zc_ring *ring)
{
    struct wanted wanted[LOOKS_MOST];
    size_t count = 0;
    struct link *lost = &ring->core->lost;
    if (!ring->scan_next)
        ring->scan_end = numbers_end();
    for (struct link *l = lost->next; l != lost && count < LOOKS_MOST; l = l->next, count++) {
        wanted[count].sock = container(l, struct zc_sock, watch_link);
        wanted[count].cookie = cookie_of(wanted[count].sock->fd);
    }
    qsort(wanted, count, sizeof(wanted[0]), compare);
    int end = ring->scan_end;
    if (end - ring->scan_next > SCANNED_MOST)
        end = ring->scan_next + SCANNED_MOST;
    for (int fd = ring->scan_next; fd < end; fd++) {
        struct wanted key = {.cookie = cookie_of(fd)};
        struct wanted *found =
            key.cookie ? bsearch(&key, wanted, count, sizeof(key), compare) : NULL;
        if (found && found->sock->fd != fd)
            zc_sock_watch(ring->core, found->sock, fd);
    }
    ring->scan_next = end < ring->scan_end ? end : 0;
    return !ring->scan_next;
}

/* With SO_LINGER a close may wait.  The event loop must not, and the program would not have. */
static void do_not_linger(int fd)
{
    struct linger linger;
    socklen_t size = sizeof(linger);
    if (getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) < 0 || !linger.l_onoff ||
        !linger.l_linger)
        return;
    linger.l_onoff = 0;
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
}

/* Closes the ring's duplicate, if it is open; returns whether the program has the socket. */
bool zc_close_duplicate(struct zc_ring *ring, struct zc_sock *sock)
{
    if (sock->fd < 0)
        return false;
    if (ring->driver->detach)
        ring->driver->detach(ring, sock->fd);
    bool has = program_has(sock);
    if (!has)
        do_not_linger(sock->fd);
    /* Whatever close() returns, the descriptor is closed. */
    close(sock->fd);
    sock->fd = -1;
    return has;
}

/* Drops the connection and its queue: held buffers are released at once. */
void zc_disconnect(int fd)
{
    static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    /* This may fail if the connection is gone already, which is just as good. */
    (void)connect(fd, &nowhere, sizeof(nowhere));
}

/* Does what the kernel does when the last descriptor is closed, but keeps the descriptor. */
static void end_connection(int fd)
{
    struct linger linger = {0};
    socklen_t size = sizeof(linger);
    int unread = 0;
    getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size);
    ioctl(fd, FIONREAD, &unread);
    if (unread > 0 || (linger.l_onoff && !linger.l_linger))
        zc_disconnect(fd);
    else
        shutdown(fd, SHUT_RDWR);
}

/* Keeps a closed connection from waiting for ever for a peer that takes nothing. */
static void limit_wait(int fd, unsigned int milliseconds)
{
    unsigned int own = 0;
    socklen_t size = sizeof(own);
    if (getsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &own, &size) == 0 &&
        (!own || own > milliseconds))
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &milliseconds, sizeof(milliseconds));
}

/* Whether a context may still ask for a reset to get the held sends of this socket back. */
static bool may_be_reset(const struct zc_sock *sock)
{
    for (const struct link *l = sock->sends.next; l != &sock->sends; l = l->next) {
        const struct zc_send *send = container(l, const struct zc_send, sock_link);
        if (send->gen && (send->flags & ZC_SEND_MUTABLE || send->gen->ctx->may_reset))
            return true;
    }
    return false;
}

/*
 * Ends the connection of a socket that the program has closed, if all its remaining sends are held.
 * With io_uring notifications need no descriptor, so the duplicate is closed and the kernel ends the
 * connection; otherwise the descriptor is kept.  Returns whether the connection was ended now.
 */
static bool end_held(struct zc_ring *ring, struct zc_sock *sock, bool keep)
{
    if (sock->head || sock->in_flight || link_alone(&sock->requests) ||
        !link_alone(&sock->broken_link))
        return false;
    bool news = !sock->ended;
    sock->ended = true;
    if (!ring->driver->tells_by_socket && !keep && !may_be_reset(sock)) {
        zc_close_duplicate(ring, sock);
        zc_sock_watch(ring->core, sock, -1);
        return news;
    }
    if (news && sock->kind == ZC_STREAM)
        end_connection(sock->fd);
    if (ring->driver->tells_by_socket)
        zc_sock_watch(ring->core, sock, -1);
    return news;
}

/*
 * Looks for sockets that the program has closed, and ends their connections; to be called now and
 * then.  A peer that takes nothing for `closing_ms` loses its connection.  With `keep` all
 * descriptors are kept, so that everything can be reset.  Writes the numbers of the sockets that
 * have ended, which must not be sent to any more, and returns how many: 1024 at most.
 */
int zc_ring_look(zc_ring *ring, uint32_t closing_ms, int keep, uint64_t *out, int max)
{
    if (!ring || !out || max < 2 * (int)LOOKS_MOST)
        return -EINVAL;
    struct zc_core *core = ring->core;
    int ended = 0;
    bool scanning = ring->scan_next > 0;
    uint32_t looks = core->watched_count < LOOKS_MOST ? core->watched_count : LOOKS_MOST;
    for (; looks && !link_alone(&core->watched); looks--) {
        struct zc_sock *sock = container(core->watched.next, struct zc_sock, watch_link);
        link_remove(&sock->watch_link);
        link_append(&core->watched, &sock->watch_link);
        if (sock->sent_to) {
            /* The program had the socket when it sent. */
            sock->sent_to = false;
        } else if (sock->closed) {
            if (end_held(ring, sock, keep))
                out[ended++] = sock->id;
        } else if (!scanning && !program_has(sock)) {
            link_remove(&sock->watch_link);
            link_append(&core->lost, &sock->watch_link);
        }
    }
    if (link_alone(&core->lost))
        ring->scan_next = 0;
    else if (scan(ring))
        while (!link_alone(&core->lost)) {
            struct zc_sock *sock = container(core->lost.next, struct zc_sock, watch_link);
            link_remove(&sock->watch_link);
            link_append(&core->watched, &sock->watch_link);
            sock->closed = true;
            limit_wait(sock->fd, closing_ms);
            if (end_held(ring, sock, keep))
                out[ended++] = sock->id;
        }
    return ended;
}
