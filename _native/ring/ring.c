/*
 * What all drivers have in common: the life of a ring, its registered memory, and a turn.
 */
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "ring.h"

/* A turn ends after this many rounds even if more is ready: the event loop has others to serve. */
#define TURN_ROUNDS 8
/* It ends after this many completions as well; with MSG_ZEROCOPY, after this many sockets. */
#define TURN_REAPS 2048u

/* Whether this kernel cuts datagrams; it takes the option from where it does (Linux 4.18). */
static bool knows_trains(void)
{
    int none = 0, sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (sock < 0)
        return false;
    bool known = setsockopt(sock, IPPROTO_UDP, UDP_SEGMENT, &none, sizeof(none)) == 0;
    close(sock);
    return known;
}

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
    ring->info.trains = knows_trains();
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
 * Resets or shuts down broken sockets.  A reset releases held buffers at once; after a shutdown the
 * kernel refuses whatever anybody sends after the hole in the bytes.
 */
static void deal_with_broken(struct zc_ring *ring)
{
    int fd, reset;
    while (zc_next_broken(ring->core, &fd, &reset) > 0)
        if (reset)
            zc_disconnect(fd);
        else
            shutdown(fd, SHUT_WR);
}

/*
 * After this no notification can be seen any more, so drain first.  ENOTEMPTY: a send was not
 * retired, so the buffers must stay where they are for ever.
 */
int zc_ring_close(zc_ring *ring)
{
    if (!ring)
        return -EINVAL;
    struct zc_stats stats;
    zc_core_stats(ring->core, &stats);
    deal_with_broken(ring);
    for (struct link *l = ring->core->sockets.next; l != &ring->core->sockets; l = l->next)
        zc_close_duplicate(ring, container(l, struct zc_sock, link));
    if (ring->driver->close)
        ring->driver->close(ring);
    if (ring->own_fd >= 0)
        close(ring->own_fd);
    bool released = !stats.queued && !stats.in_flight && !stats.held;
    int err = zc_core_free(ring->core);
    /* Staging memory that the kernel still reads stays where it is, like any other buffer. */
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
 * Registers memory with the kernel under a free index.  EOPNOTSUPP: the driver has no registered
 * buffers; ENOMEM: RLIMIT_MEMLOCK.  Sends from refused memory work as from any other.
 */
int zc_ring_register(zc_ring *ring, char *memory, size_t size)
{
    if (!ring)
        return -EINVAL;
    if (!ring->driver->set_region)
        return -EOPNOTSUPP;
    int index = zc_core_add_region(ring->core, memory, size);
    if (index < 0)
        return index;
    int err = ring->driver->set_region(ring, (uint32_t)index, memory, size);
    if (err < 0) {
        zc_core_drop_region(ring->core, memory);
        return err;
    }
    return index;
}

/* Unregisters memory; requests that read from it keep it pinned until their notification. */
int zc_ring_unregister(zc_ring *ring, char *memory)
{
    if (!ring)
        return -EINVAL;
    int index = zc_core_drop_region(ring->core, memory);
    return index < 0 ? index : ring->driver->set_region(ring, (uint32_t)index, NULL, 0);
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

static void add_event(int64_t *events, int *count, int kind)
{
    int64_t *event = events + (ptrdiff_t)(*count)++ * ZC_EVENT_FIELDS;
    event[0] = kind;
    event[1] = event[2] = event[3] = 0;
}

/*
 * Reaps, submits, and writes the events that are to be told.  Returns their number.  The last may be
 * ZC_EV_LATER, and ZC_EV_AGAIN or ZC_EV_MORE: no completion will announce what is left, so another
 * turn has to be taken.
 */
int zc_ring_turn(zc_ring *ring, int64_t *events, int max_events)
{
    int taken = 0;
    if (!ring || !events || max_events < 3)
        return -EINVAL;
    zc_begin_turn(ring->core);
    ring->reaps_left = TURN_REAPS;
    for (int round = 0; round < TURN_ROUNDS; round++) {
        ring->driver->reap(ring);
        deal_with_broken(ring);
        taken = ring->driver->submit(ring);
        /* After a passing error the rest stays in the queue for the next turn. */
        if (taken < 0 && taken != -EAGAIN && taken != -EBUSY && taken != -EINTR)
            return taken;
        if (taken <= 0 || zc_turn_is_spent(ring->core) || !ring->reaps_left)
            break;
    }
    int count = zc_events(ring->core, events, max_events - 2);
    if (!ring->core->ticking && (!link_alone(&ring->core->lingering) || ring->core->watched_count)) {
        ring->core->ticking = true;
        add_event(events, &count, ZC_EV_LATER);
        events[(ptrdiff_t)(count - 1) * ZC_EVENT_FIELDS + 1] = !link_alone(&ring->core->lingering);
    }
    bool ready = !link_alone(&ring->core->ready), spent = zc_turn_is_spent(ring->core);
    if (taken < 0 || (ready && !spent) || !link_alone(&ring->core->cancels) || !link_alone(&ring->core->broken) ||
        !link_alone(&ring->receiver_work))
        add_event(events, &count, ZC_EV_AGAIN);
    else if (ready || !ring->reaps_left || !link_alone(&ring->core->events))
        add_event(events, &count, ZC_EV_MORE);
    return count;
}
