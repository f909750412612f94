/*
 * What all drivers have in common: the life of a ring, a turn, and the sockets that it keeps.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ring.h"

/* A turn ends here even if more is ready: the event loop has others to serve. */
#define TURN_ROUNDS 8

int zc_ring_open(int driver, uint32_t entries, int wake, zc_ring **out, struct zc_ring_info *info)
{
    if (!out || !info || entries == 0 || entries > MAX_ENTRIES ||
        (wake != ZC_WAKE_RING_FD && wake != ZC_WAKE_EVENTFD))
        return -EINVAL;
    struct zc_ring *ring = calloc(1, sizeof(*ring));
    if (!ring)
        return -ENOMEM;
    memset(info, 0, sizeof(*info));
    ring->own_fd = ring->info.wake_fd = -1;
    link_init(&ring->receiver_work);
    const char *step = "memory";
    int err = -ENOMEM;
    ring->core = zc_core_new(0, MAX_REQUESTS);
    if (!ring->core)
        goto fail;
    switch (driver) {
    case ZC_DRIVER_IO_URING:
        ring->driver = &zc_uring_driver;
        err = zc_uring_open(ring, entries, wake, &step);
        break;
    case ZC_DRIVER_MSG_ZEROCOPY:
    case ZC_DRIVER_COPY:
        ring->driver = driver == ZC_DRIVER_COPY ? &zc_copy_driver : &zc_msg_zerocopy_driver;
        err = zc_epoll_open(ring, driver == ZC_DRIVER_MSG_ZEROCOPY, &step);
        break;
    default:
        step = "";
        err = -EINVAL;
    }
    if (err < 0)
        goto fail;
    *info = ring->info;
    *out = ring;
    return 0;

fail:
    if (ring->own_fd >= 0)
        close(ring->own_fd);
    if (ring->core)
        zc_core_free(ring->core);
    strncpy(info->failed_step, step, sizeof(info->failed_step) - 1);
    free(ring);
    return err;
}

/*
 * Whatever is still held can never be learned of after this: drain first.  ENOTEMPTY says that a
 * send was not retired, and that the buffers must stay where they are for ever.
 */
int zc_ring_close(zc_ring *ring)
{
    if (!ring)
        return -EINVAL;
    struct zc_stats stats;
    zc_core_stats(ring->core, &stats);
    for (struct link *l = ring->core->sockets.next; l != &ring->core->sockets; l = l->next)
        if (!container(l, struct zc_sock, link)->suspended)
            close(container(l, struct zc_sock, link)->fd);
    if (ring->driver->close)
        ring->driver->close(ring);
    if (ring->own_fd >= 0)
        close(ring->own_fd);
    bool released = !stats.queued && !stats.in_flight && !stats.held;
    int err = zc_core_free(ring->core);
    /* Staging memory that the kernel still reads is left where it is, like any other buffer. */
    if (ring->stage_memory && released)
        zc_unmap(ring->stage_memory, ring->stage_size, ZC_PAGES_ORDINARY);
    free(ring);
    return released ? err : -ENOTEMPTY;
}

zc_core *zc_ring_core(zc_ring *ring)
{
    return ring ? ring->core : NULL;
}

uint64_t zc_ring_submits(const zc_ring *ring)
{
    return ring ? ring->submits : 0;
}

/*
 * Registers memory with the kernel under a free index.  EOPNOTSUPP: the driver knows no registered
 * buffers; ENOMEM: RLIMIT_MEMLOCK.  Sends from it then work as from any other memory.
 */
int zc_ring_register(zc_ring *ring, char *memory, size_t size)
{
    if (!ring || !memory || size == 0 || size > REQUEST_MAX_BYTES)
        return -EINVAL;
    if (!ring->driver->set_region)
        return -EOPNOTSUPP;
    uint32_t index = 0;
    while (index < MAX_REGIONS && ring->regions[index].size)
        index++;
    if (index == MAX_REGIONS)
        return -ENOBUFS;
    struct zc_region region = {.memory = memory, .size = size};
    int err = ring->driver->set_region(ring, index, &region);
    if (err < 0)
        return err;
    ring->regions[index] = region;
    if (index >= ring->regions_used)
        ring->regions_used = index + 1;
    return (int)index;
}

/* Requests that read from it keep it pinned until their notification. */
int zc_ring_unregister(zc_ring *ring, char *memory)
{
    static const struct zc_region none;
    if (!ring || !memory)
        return -EINVAL;
    for (uint32_t i = 0; i < ring->regions_used; i++) {
        if (ring->regions[i].memory != memory || !ring->regions[i].size)
            continue;
        ring->regions[i] = none;
        return ring->driver->set_region(ring, i, &none);
    }
    return -ENOENT;
}

/* Gives the ring staging memory.  Returns 1 if it is registered, 0 if it is not, or could not be. */
int zc_ring_stage(zc_ring *ring, size_t size, int registered)
{
    if (!ring || ring->stage_memory)
        return -EINVAL;
    char *memory = zc_map(size, ZC_PAGES_ORDINARY);
    if (!memory)
        return -errno;
    int err = zc_core_stage(ring->core, memory, size);
    if (err < 0) {
        zc_unmap(memory, size, ZC_PAGES_ORDINARY);
        return err;
    }
    ring->stage_memory = memory;
    ring->stage_size = size;
    return registered && zc_ring_register(ring, memory, size) >= 0;
}

/* Writes a struct sockaddr for a numeric address and returns its size; EINVAL: it is none. */
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

/* Whether both ends of a connection have the same address: what is sent there is copied. */
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

int zc_socket_info(int fd, struct zc_socket_info *out)
{
    struct stat st;
    struct sockaddr_storage peer, own;
    socklen_t size = sizeof(int), peer_size = sizeof(peer), own_size = sizeof(own);
    if (!out)
        return -EINVAL;
    memset(out, 0, sizeof(*out));
    memset(&own, 0, sizeof(own));
    if (fstat(fd, &st) < 0)
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

/* For others the kernel would answer a zero-copy send with EOPNOTSUPP. */
static bool can_zero_copy(const struct zc_socket_info *info)
{
    return (info->domain == AF_INET || info->domain == AF_INET6) &&
           info->protocol != IPPROTO_MPTCP;
}

/*
 * The ring keeps a duplicate: the number that the program knows may be closed, and be another
 * connection's, while requests are under way.
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
        sock->inode = info->inode;
        if (info->local)
            /* What goes to this machine is copied: one probe is enough. */
            sock->copied_in_a_row = COPIED_IN_A_ROW - 1;
        if (learned) {
            sock->copied_in_a_row = learned->copied_in_a_row;
            sock->copy_left = learned->copy_left;
            sock->copy_next = learned->copy_next;
            sock->knows_next_id = learned->knows_next_id;
            sock->next_id = learned->next_id;
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
    /* Idle until something is queued: a send that is refused must not leave its socket attached. */
    zc_tell(ring->core, &sock->idle_event, ZC_EV_IDLE);
    return sock;
}

/* What to give to zc_ring_attach when the socket comes again. */
void zc_sock_learned(const zc_sock *sock, struct zc_learned *out)
{
    if (!sock || !out)
        return;
    out->copied_in_a_row = sock->copied_in_a_row;
    out->copy_left = sock->copy_left;
    out->copy_next = sock->copy_next;
    out->knows_next_id = sock->knows_next_id;
    out->next_id = sock->next_id;
}

/*
 * Gives up the duplicate of a socket, and keeps what is known of it: resuming costs a fraction of
 * attaching.  Refused like zc_sock_suspend.
 */
int zc_ring_suspend(zc_ring *ring, zc_sock *sock)
{
    if (!ring || !sock || sock->suspended)
        return -EINVAL;
    int err = zc_sock_suspend(ring->core, sock);
    if (err < 0)
        return err;
    if (ring->driver->detach)
        ring->driver->detach(ring, sock->fd);
    /* Whatever it answers, the descriptor is closed. */
    close(sock->fd);
    sock->fd = -1;
    return 0;
}

/*
 * Takes a duplicate again.  ESTALE: the descriptor is another socket by now, ENOTCONN: the stream
 * has lost its connection; neither changes anything.
 */
int zc_ring_resume(zc_ring *ring, zc_sock *sock, int fd)
{
    struct stat st;
    struct sockaddr_storage peer;
    socklen_t peer_size = sizeof(peer);
    if (!ring || !sock || !sock->suspended)
        return -EINVAL;
    if (fstat(fd, &st) < 0)
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
        return err;
    }
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

/*
 * connect(AF_UNSPEC) drops the connection's queue, which gives held buffers back at once; shutdown
 * makes the kernel refuse whatever anybody sends after a hole in the bytes.  Both may fail when the
 * connection is gone already, which is as good.
 */
static void deal_with_broken(struct zc_ring *ring)
{
    static const struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
    int fd, reset;
    while (zc_next_broken(ring->core, &fd, &reset) > 0)
        (void)(reset ? connect(fd, &nowhere, sizeof(nowhere)) : shutdown(fd, SHUT_WR));
}

static void add_event(int64_t *events, int *count, int kind)
{
    int64_t *event = events + (ptrdiff_t)(*count)++ * ZC_EVENT_FIELDS;
    event[0] = kind;
    event[1] = event[2] = event[3] = 0;
}

/*
 * Reaps, submits, and writes what there is to tell.  Returns the number of events; the last may be
 * ZC_EV_LATER, and ZC_EV_AGAIN: something is ready that no completion will announce, so take another
 * turn soon.
 */
int zc_ring_turn(zc_ring *ring, int64_t *events, int max_events)
{
    int taken = 0;
    if (!ring || !events || max_events < 3)
        return -EINVAL;
    for (int round = 0; round < TURN_ROUNDS; round++) {
        ring->driver->reap(ring);
        deal_with_broken(ring);
        taken = ring->driver->submit(ring);
        /* What a passing error leaves behind stays in the queue for the next turn. */
        if (taken < 0 && taken != -EAGAIN && taken != -EBUSY && taken != -EINTR)
            return taken;
        if (taken <= 0)
            break;
    }
    int count = zc_events(ring->core, events, max_events - 2);
    if (!link_alone(&ring->core->lingering))
        add_event(events, &count, ZC_EV_LATER);
    if (taken < 0 || !link_alone(&ring->core->ready) || !link_alone(&ring->core->cancels) ||
        !link_alone(&ring->receiver_work))
        add_event(events, &count, ZC_EV_AGAIN);
    return count;
}
