/*
 * A socket: making and freeing it, when it is ready for submission, and when it is idle.
 */
#include <errno.h>

#include "accounting.h"

zc_sock *zc_sock_new(zc_core *core, uint64_t id, int fd, int kind, int can_zero_copy)
{
    if (!core || (kind != ZC_STREAM && kind != ZC_DATAGRAM))
        return NULL;
    struct zc_sock *sock = zc_alloc(core, sizeof(*sock));
    if (!sock)
        return NULL;
    sock->id = id;
    sock->fd = fd;
    sock->kind = kind;
    sock->can_zero_copy = can_zero_copy;
    sock->most_zero_copy = SIZE_MAX;
    link_init(&sock->ready_link);
    link_init(&sock->broken_link);
    link_init(&sock->work_link);
    link_init(&sock->idle_event.link);
    link_init(&sock->linger_link);
    link_init(&sock->watch_link);
    sock->program_fd = -1;
    link_init(&sock->sends);
    link_init(&sock->requests);
    link_append(&core->sockets, &sock->link);
    core->stats.sockets++;
    return sock;
}

static void unwatch(struct zc_core *core, struct zc_sock *sock)
{
    core->watched_count -= !link_alone(&sock->watch_link);
    link_remove(&sock->watch_link);
}

/* The program has the socket as this descriptor, and may close it without telling; -1: it tells. */
int zc_sock_watch(zc_core *core, zc_sock *sock, int program_fd)
{
    if (!core || !sock)
        return -EINVAL;
    unwatch(core, sock);
    sock->program_fd = program_fd;
    if (program_fd < 0)
        return 0;
    sock->closed = false;
    link_append(&core->watched, &sock->watch_link);
    core->watched_count++;
    return 0;
}

/*
 * From now on the kernel encrypts what is sent, into memory of its own.  It refuses zero copy on such
 * a socket with EOPNOTSUPP.
 */
int zc_sock_encrypted(zc_sock *sock)
{
    if (!sock)
        return -EINVAL;
    sock->can_zero_copy = false;
    sock->kernel_tls = true;
    return 0;
}

/*
 * Suspends the socket: it takes no sends until it is resumed.  Refused with EBUSY while a send or a
 * request refers to it, a failure was not told, or it is still to be shut down or reset
 * (zc_next_broken).
 */
int zc_sock_suspend(zc_core *core, zc_sock *sock)
{
    if (!core || !sock)
        return -EINVAL;
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests) || sock->untold ||
        !link_alone(&sock->broken_link))
        return -EBUSY;
    link_remove(&sock->ready_link);
    link_remove(&sock->idle_event.link);
    link_remove(&sock->linger_link);
    unwatch(core, sock);
    if (!sock->suspended)
        core->stats.sockets--;
    sock->suspended = true;
    return 0;
}

/* Resumes the socket with another descriptor: it takes sends again. */
int zc_sock_resume(zc_core *core, zc_sock *sock, int fd)
{
    if (!core || !sock || !sock->suspended)
        return -EINVAL;
    sock->fd = fd;
    sock->suspended = sock->closed = sock->ended = false;
    core->stats.sockets++;
    return 0;
}

/* Refused like zc_sock_suspend. */
int zc_sock_free(zc_core *core, zc_sock *sock)
{
    int err = zc_sock_suspend(core, sock);
    if (err < 0)
        return err;
    link_remove(&sock->link);
    zc_free(core, sock);
    return 0;
}

/* The errno that broke the socket, 0 if it is whole. */
int zc_sock_error(const zc_sock *sock)
{
    return sock ? sock->error : -EINVAL;
}

/* Whether bytes of the socket are queued or in flight; 0: the kernel has taken all of them. */
int zc_sock_unsent(const zc_sock *sock)
{
    if (!sock)
        return -EINVAL;
    return sock->head != NULL || sock->in_flight > 0;
}

void zc_sock_make_ready(struct zc_core *core, struct zc_sock *sock)
{
    uint32_t most = sock->kind == ZC_STREAM ? 1 : DATAGRAMS_IN_FLIGHT;
    if (sock->head && !sock->error && sock->in_flight < most && !sock->blocked &&
        link_alone(&sock->ready_link))
        link_append(&core->ready, &sock->ready_link);
}

/* The socket has no room until it is writable. */
void zc_sock_block(struct zc_sock *sock)
{
    sock->blocked = true;
    link_remove(&sock->ready_link);
}

/* The socket is writable again. */
void zc_sock_unblock(struct zc_core *core, struct zc_sock *sock)
{
    sock->blocked = false;
    zc_sock_make_ready(core, sock);
}

/* Counts a request that goes out by copying: after some of them zero copy may be tried again. */
void zc_sock_count_copy(struct zc_core *core, struct zc_sock *sock)
{
    core->copy_left -= core->copy_left > 0;
    sock->copy_left -= sock->copy_left > 0;
}

/*
 * A socket is idle when nothing refers to it: its descriptor can be given up.  This is told a little
 * later, since a socket is often sent to again soon, and attaching it anew costs more than waiting.
 */
void zc_sock_check_idle(struct zc_core *core, struct zc_sock *sock)
{
    if (!link_alone(&sock->sends) || !link_alone(&sock->requests))
        return;
    if (!core->linger || sock->error) {
        zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
        return;
    }
    sock->idle_since = core->now;
    link_remove(&sock->linger_link);
    link_append(&core->lingering, &sock->linger_link);
}

/* A send left nothing behind: counts the socket as idle from now on, and not from before the send. */
void zc_sock_used(struct zc_core *core, struct zc_sock *sock)
{
    link_remove(&sock->idle_event.link);
    sock->sent_to = true;
    zc_sock_check_idle(core, sock);
}

/* Tells of the sockets that have been idle for long enough; `now` counts ticks and never goes back. */
int zc_core_advance(zc_core *core, uint64_t now)
{
    if (!core)
        return -EINVAL;
    core->now = now;
    core->ticking = false;
    while (!link_alone(&core->lingering)) {
        struct zc_sock *sock = container(core->lingering.next, struct zc_sock, linger_link);
        if (now - sock->idle_since < core->linger)
            break;
        link_remove(&sock->linger_link);
        zc_tell(core, &sock->idle_event, ZC_EV_IDLE);
    }
    return 0;
}

/* Sets for how many ticks an idle socket stays attached; 0 tells of all that are idle. */
int zc_core_linger(zc_core *core, uint32_t ticks)
{
    if (!core)
        return -EINVAL;
    core->linger = ticks;
    return zc_core_advance(core, core->now);
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
