/*
 * The sockets that a ring keeps: what the kernel says about them, attaching, suspending, resuming.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "ring.h"

/* Writes a struct sockaddr for a numeric address and returns its size; EINVAL: it is not one. */
int zc_address(const char *host, uint16_t port, uint32_t flow, uint32_t scope, char *out)
{
    struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 v6 = {.sin6_family = AF_INET6,
                              .sin6_port = htons(port),
                              .sin6_flowinfo = htonl(flow),
                              .sin6_scope_id = scope};
    if (!host || !out)
        return -EINVAL;
    if (inet_pton(AF_INET, host, &v4.sin_addr) == 1) {
        memcpy(out, &v4, sizeof(v4));
        return sizeof(v4);
    }
    if (inet_pton(AF_INET6, host, &v6.sin6_addr) != 1)
        return -EINVAL;
    memcpy(out, &v6, sizeof(v6));
    return sizeof(v6);
}

/* Whether both ends of a connection have the same address, so that its sends are copied. */
static bool is_local(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    const struct sockaddr_in6 *a6 = (const void *)a, *b6 = (const void *)b;
    const struct sockaddr_in *a4 = (const void *)a, *b4 = (const void *)b;
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET)
        return a4->sin_addr.s_addr == b4->sin_addr.s_addr;
    return a->ss_family == AF_INET6 &&
           memcmp(&a6->sin6_addr, &b6->sin6_addr, sizeof(a6->sin6_addr)) == 0;
}

/*
 * As fstat(2).  glibc has a symbol of that name only since 2.33, and wheels have to load with older
 * versions.  On the platforms of the wheels, glibc and musl have the kernel's struct stat.
 */
static int status_of(int fd, struct stat *st)
{
#if defined(__x86_64__) || defined(__aarch64__)
    return (int)syscall(SYS_fstat, fd, st);
#else
    return fstat(fd, st);
#endif
}

int zc_socket_info(int fd, struct zc_socket_info *out)
{
    struct stat st;
    struct sockaddr_storage peer, own;
    socklen_t size = sizeof(int), peer_size = sizeof(peer), own_size = sizeof(own);
    if (!out)
        return -EINVAL;
    memset(out, 0, sizeof(*out));
    memset(&own, 0, sizeof(own));
    if (status_of(fd, &st) < 0)
        return -errno;
    out->inode = st.st_ino;
    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &out->type, &size) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PROTOCOL, &out->protocol, &size) < 0 ||
        getsockname(fd, (struct sockaddr *)&own, &own_size) < 0)
        return -errno;
    out->domain = own.ss_family;
    out->connected = getpeername(fd, (struct sockaddr *)&peer, &peer_size) == 0;
    out->local = out->connected && is_local(&own, &peer);
    return 0;
}

/* Other sockets would answer a zero-copy send with EOPNOTSUPP. */
static bool can_zero_copy(const struct zc_socket_info *info)
{
    return (info->domain == AF_INET || info->domain == AF_INET6) &&
           info->protocol != IPPROTO_MPTCP;
}

/* Others would take a train for one datagram: a UNIX socket knows no UDP_SEGMENT, and says nothing. */
static bool takes_trains(const struct zc_socket_info *info)
{
    return info->type == SOCK_DGRAM && info->protocol == IPPROTO_UDP &&
           (info->domain == AF_INET || info->domain == AF_INET6);
}

/*
 * The ring keeps a duplicate: while requests are under way the program may close its descriptor,
 * whose number may then be another connection's.
 */
zc_sock *zc_ring_attach(zc_ring *ring, int fd, uint64_t id, const struct zc_socket_info *info,
                        const struct zc_learned *learned)
{
    if (!ring || !info) {
        errno = EINVAL;
        return NULL;
    }
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return NULL;
    int kind = info->type == SOCK_DGRAM ? ZC_DATAGRAM : ZC_STREAM;
    struct zc_sock *sock = zc_sock_new(ring->core, id, own, kind, can_zero_copy(info));
    if (sock) {
        zc_sock_take_trains(sock, ring->info.trains && takes_trains(info));
        sock->inode = info->inode;
        sock->forks = zc_forks();
        if (info->local)
            /* Sends to this machine are copied: one probe is enough. */
            sock->copied_in_a_row = COPIED_IN_A_ROW - 1;
        if (learned) {
            sock->copied_in_a_row = learned->copied_in_a_row;
            sock->copy_left = learned->copy_left;
            sock->copy_next = learned->copy_next;
            sock->knows_next_number = learned->knows_next_number && learned->forks == sock->forks;
            sock->next_number = learned->next_number;
        }
    }
    int err = !sock ? -ENOMEM : ring->driver->attach ? ring->driver->attach(ring, sock) : 0;
    if (err < 0) {
        if (sock)
            zc_sock_free(ring->core, sock);
        close(own);
        errno = -err;
        return NULL;
    }
    zc_sock_watch(ring->core, sock, fd);
    /* Idle until something is queued: a refused send must not leave its socket attached. */
    zc_tell(ring->core, &sock->idle_event, ZC_EV_IDLE);
    return sock;
}

/* What to give to zc_ring_attach when the socket is attached again. */
void zc_sock_learned(const zc_sock *sock, struct zc_learned *out)
{
    if (!sock || !out)
        return;
    out->copied_in_a_row = sock->copied_in_a_row;
    out->copy_left = sock->copy_left;
    out->copy_next = sock->copy_next;
    out->knows_next_number = sock->knows_next_number;
    out->next_number = sock->next_number;
    out->forks = sock->forks;
}

/*
 * Closes the duplicate of a socket, and keeps what is known of the socket: resuming costs a fraction
 * of attaching.  Returns 1 if the program still has the socket as the same descriptor, 0 if it has
 * closed that, or is one that tells.  Refused like zc_sock_suspend.
 */
int zc_ring_suspend(zc_ring *ring, zc_sock *sock)
{
    if (!ring || !sock || sock->suspended)
        return -EINVAL;
    int err = zc_sock_suspend(ring->core, sock);
    if (err < 0)
        return err;
    return zc_close_duplicate(ring, sock);
}

/*
 * Makes a duplicate again.  ESTALE: the descriptor is another socket by now; ENOTCONN: the stream
 * has lost its connection.  In both cases nothing changes.
 */
int zc_ring_resume(zc_ring *ring, zc_sock *sock, int fd)
{
    struct stat st;
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof(peer);
    if (!ring || !sock || !sock->suspended)
        return -EINVAL;
    if (status_of(fd, &st) < 0)
        return -errno;
    if (!S_ISSOCK(st.st_mode) || st.st_ino != sock->inode)
        return -ESTALE;
    if (sock->kind == ZC_STREAM && getpeername(fd, (struct sockaddr *)&peer, &peer_size) < 0)
        return -errno;
    int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (own < 0)
        return -errno;
    zc_sock_resume(ring->core, sock, own);
    int err = ring->driver->attach ? ring->driver->attach(ring, sock) : 0;
    if (err < 0) {
        zc_sock_suspend(ring->core, sock);
        close(own);
        sock->fd = -1;
        return err;
    }
    zc_sock_watch(ring->core, sock, fd);
    zc_tell(ring->core, &sock->idle_event, ZC_EV_IDLE);
    return 0;
}

int zc_ring_detach(zc_ring *ring, zc_sock *sock)
{
    if (!ring || !sock)
        return -EINVAL;
    int err = sock->suspended ? 0 : zc_ring_suspend(ring, sock);
    return err < 0 ? err : zc_sock_free(ring->core, sock);
}
