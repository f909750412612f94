/*
 * Receiving through an io_uring.
 *
 * A receiver has at most one operation armed: a multishot receive, which goes on bringing bytes into
 * buffers that all receivers share; or a poll, after which its user calls recv().  What arrives is
 * moved at once from the shared buffers into memory of the receiver, so that a slow reader never
 * keeps the shared ones from others.  That memory is bounded: past a limit the operation is
 * cancelled, and armed again when its user has taken everything.
 *
 * There is no multishot accept: it takes connections for as long as there are descriptors, before
 * anybody can stop it, so that a flood takes all descriptors of the process.
 *
 * Bytes that come in large pieces are better not moved.  The operation of a receiver that gets one
 * ("bulk") is cancelled; its user then polls, until the pieces are small again.
 *
 * Shared buffers are consumed a piece at a time where the kernel can do that (IOU_PBUF_RING_INC,
 * 6.12), else one with each completion.  Multishot receive is 6.0, as is zero-copy send.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "ring.h"

/* liburing 2.3's header has neither. */
#define PBUF_RING_INC 2
#define CQE_F_BUF_MORE (1u << 4)

#define GROUP 0
#define SHARED_BUFFER ((size_t)64 << 10)
#define SHARED_SIZE (SHARED_BUFFERS * (SHARED_BUFFER + sizeof(struct io_uring_buf)))
/* Unread bytes at which a receiver's operation is cancelled; a socket's buffer may come on top. */
#define UNREAD_BYTES ((size_t)256 << 10)
/* A piece of this size makes a receiver bulk. */
#define BULK_BYTES 16384
/* Memory that an idle receiver keeps, at most. */
#define IDLE_BYTES ((size_t)4 << 10)

struct zc_rx {
    struct link work_link; /* ring->receiver_work: to be armed or cancelled */
    struct ready_event ready;
    uint32_t index; /* in ring->receivers */
    int fd, error;
    int armed;  /* ZC_RX_..., or 0 */
    int wanted; /* what to arm next */
    bool cancel, cancelled; /* the operation is to be cancelled; the cancellation was submitted */
    bool freed, end, bulk;
    char *data;
    size_t start, used, size;
};

static char *shared_buffer(const struct zc_ring *ring, unsigned id)
{
    return ring->shared + id * SHARED_BUFFER;
}

static void offer_buffer(struct zc_ring *ring, unsigned id)
{
    ring->shared_used[id] = 0;
    io_uring_buf_ring_add(ring->shared_ring, shared_buffer(ring, id), SHARED_BUFFER,
                          (unsigned short)id, io_uring_buf_ring_mask(SHARED_BUFFERS), 0);
    io_uring_buf_ring_advance(ring->shared_ring, 1);
}

/* struct io_uring_buf_reg of Linux 6.12, whose last field liburing 2.3 has as padding. */
struct buffer_ring_registration {
    uint64_t address;
    uint32_t entries;
    uint16_t group, flags;
    uint64_t reserved[3];
};

static int register_shared(struct zc_ring *ring)
{
    union {
        struct buffer_ring_registration wanted;
        struct io_uring_buf_reg given;
    } reg = {.wanted = {.address = (uintptr_t)ring->shared_ring,
                        .entries = SHARED_BUFFERS,
                        .group = GROUP,
                        .flags = PBUF_RING_INC}};
    int err = io_uring_register_buf_ring(&ring->uring, &reg.given, 0);
    ring->shared_in_pieces = err == 0;
    if (err != -EINVAL)
        return err;
    reg.wanted.flags = 0;
    return io_uring_register_buf_ring(&ring->uring, &reg.given, 0);
}

/* Makes the shared buffers, with the first receiver. */
static int share_buffers(struct zc_ring *ring)
{
    if (ring->shared)
        return 0;
    char *memory = mmap(NULL, SHARED_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return -errno;
    ring->shared_ring = (struct io_uring_buf_ring *)(void *)(memory + SHARED_BUFFERS * SHARED_BUFFER);
    io_uring_buf_ring_init(ring->shared_ring);
    int err = register_shared(ring);
    if (err < 0) {
        munmap(memory, SHARED_SIZE);
        return err;
    }
    ring->shared = memory;
    for (unsigned id = 0; id < SHARED_BUFFERS; id++)
        offer_buffer(ring, id);
    return 0;
}

static int remember(struct zc_ring *ring, struct zc_rx *rx)
{
    uint32_t index = ring->receivers_free;
    while (index < ring->receivers_size && ring->receivers[index])
        index++;
    if (index == ring->receivers_size) {
        uint32_t size = ring->receivers_size ? 2 * ring->receivers_size : 16;
        struct zc_rx **grown = realloc(ring->receivers, size * sizeof(*grown));
        if (!grown)
            return -ENOMEM;
        memset(grown + ring->receivers_size, 0, (size - ring->receivers_size) * sizeof(*grown));
        ring->receivers = grown;
        ring->receivers_size = size;
    }
    ring->receivers[index] = rx;
    ring->receivers_free = index + 1;
    rx->index = index;
    return 0;
}

/* Makes a receiver of a socket; EOPNOTSUPP: the driver has no receivers. */
int zc_rx_new(zc_ring *ring, int fd, uint64_t id, zc_rx **out)
{
    if (!ring || fd < 0 || !out)
        return -EINVAL;
    if (ring->driver != &zc_uring_driver)
        return -EOPNOTSUPP;
    int err = share_buffers(ring);
    if (err < 0)
        return err;
    struct zc_rx *rx = calloc(1, sizeof(*rx));
    if (!rx)
        return -ENOMEM;
    rx->fd = fd;
    rx->ready.id = id;
    link_init(&rx->work_link);
    link_init(&rx->ready.event.link);
    err = remember(ring, rx);
    if (err < 0) {
        free(rx);
        return err;
    }
    ring->core->stats.receivers++;
    *out = rx;
    return 0;
}

static void forget(struct zc_ring *ring, struct zc_rx *rx)
{
    link_remove(&rx->work_link);
    link_remove(&rx->ready.event.link);
    ring->receivers[rx->index] = NULL;
    if (rx->index < ring->receivers_free)
        ring->receivers_free = rx->index;
    ring->core->stats.receivers--;
    free(rx->data);
    free(rx);
}

static void work(struct zc_ring *ring, struct zc_rx *rx)
{
    if (link_alone(&rx->work_link))
        link_append(&ring->receiver_work, &rx->work_link);
}

static void stop(struct zc_ring *ring, struct zc_rx *rx)
{
    rx->wanted = 0;
    if (rx->armed && !rx->cancelled)
        work(ring, rx);
    else
        link_remove(&rx->work_link);
    rx->cancel = rx->armed != 0;
}

/*
 * Frees a receiver; its descriptor may be closed after this.  What had arrived is lost.  The kernel
 * lets go of the socket when the cancellation is done, in one of the next turns.
 */
int zc_rx_free(zc_ring *ring, zc_rx *rx)
{
    if (!ring || !rx)
        return -EINVAL;
    rx->freed = true;
    link_remove(&rx->ready.event.link);
    stop(ring, rx);
    if (!rx->armed)
        forget(ring, rx);
    return 0;
}

/* Whether an operation is armed, or will be, so that the user must not read the socket itself. */
int zc_rx_is_armed(const zc_rx *rx)
{
    return rx && (rx->armed || rx->wanted);
}

/*
 * How many bytes can be taken; 0: the end of the stream; EAGAIN: nothing has come, but an operation
 * is armed or will be; ENODATA: nothing has come, and none is armed.
 */
int64_t zc_rx_ready(const zc_rx *rx)
{
    if (!rx)
        return -EINVAL;
    if (rx->used)
        return (int64_t)rx->used;
    if (rx->error)
        return -rx->error;
    if (rx->end)
        return 0;
    return zc_rx_is_armed(rx) ? -EAGAIN : -ENODATA;
}

/* Where the bytes that can be taken lie, until the next turn. */
const char *zc_rx_data(const zc_rx *rx)
{
    return rx ? rx->data + rx->start : NULL;
}

int zc_rx_consume(zc_rx *rx, size_t size)
{
    if (!rx || size > rx->used)
        return -EINVAL;
    rx->start += size;
    rx->used -= size;
    if (rx->used)
        return 0;
    rx->start = 0;
    if (rx->size > IDLE_BYTES) {
        free(rx->data);
        rx->data = NULL;
        rx->size = 0;
    }
    return 0;
}

int zc_rx_is_bulk(const zc_rx *rx)
{
    return rx && rx->bulk;
}

/* Arms an operation in the next turn; ZC_EV_READY then tells of what it brings. */
int zc_rx_arm(zc_ring *ring, zc_rx *rx, int what)
{
    if (!ring || !rx || rx->freed || (what != ZC_RX_RECEIVE && what != ZC_RX_POLL))
        return -EINVAL;
    if (rx->armed && !rx->cancel)
        return 0;
    if (what == ZC_RX_RECEIVE)
        rx->bulk = false;
    rx->wanted = what;
    if (!rx->armed)
        work(ring, rx);
    return 0;
}

/* Cancels every operation; what has arrived can still be taken.  Returns how many are still armed. */
int zc_ring_stop_receiving(zc_ring *ring)
{
    int armed = 0;
    if (!ring)
        return -EINVAL;
    for (uint32_t i = 0; i < ring->receivers_size; i++) {
        struct zc_rx *rx = ring->receivers[i];
        if (!rx)
            continue;
        stop(ring, rx);
        armed += rx->armed != 0;
    }
    return armed;
}

/* --- what the driver calls --- */

/* Turns what has to be armed or cancelled into SQEs. */
void zc_rx_submit(struct zc_ring *ring)
{
    while (!link_alone(&ring->receiver_work) && io_uring_sq_space_left(&ring->uring)) {
        struct zc_rx *rx = container(ring->receiver_work.next, struct zc_rx, work_link);
        struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
        link_remove(&rx->work_link);
        uint64_t user_data = RECEIVER_MARK | rx->index;
        if (rx->armed) {
            io_uring_prep_cancel64(sqe, user_data, 0);
            io_uring_sqe_set_data64(sqe, NOBODY);
            rx->cancelled = true;
            continue;
        }
        if (rx->wanted == ZC_RX_RECEIVE) {
            io_uring_prep_recv_multishot(sqe, rx->fd, NULL, 0, 0);
            sqe->flags |= IOSQE_BUFFER_SELECT;
            sqe->buf_group = GROUP;
        } else
            io_uring_prep_poll_add(sqe, rx->fd, POLLIN);
        io_uring_sqe_set_data64(sqe, user_data);
        rx->armed = rx->wanted;
        rx->wanted = 0;
        rx->cancel = rx->cancelled = false;
    }
}

static bool append(struct zc_rx *rx, const void *data, size_t size)
{
    if (rx->size - rx->start - rx->used < size) {
        if (rx->start) {
            memmove(rx->data, rx->data + rx->start, rx->used);
            rx->start = 0;
        }
        if (rx->size - rx->used < size) {
            size_t wanted = rx->used + size > 2 * rx->size ? rx->used + size : 2 * rx->size;
            char *grown = realloc(rx->data, wanted);
            if (!grown)
                return false;
            rx->data = grown;
            rx->size = wanted;
        }
    }
    memcpy(rx->data + rx->start + rx->used, data, size);
    rx->used += size;
    return true;
}

/* Moves what a completion brought out of its shared buffer. */
static void take_bytes(struct zc_ring *ring, struct zc_rx *rx, size_t size, uint32_t flags)
{
    unsigned id = flags >> IORING_CQE_BUFFER_SHIFT;
    if (!(flags & IORING_CQE_F_BUFFER) || id >= SHARED_BUFFERS ||
        size > SHARED_BUFFER - ring->shared_used[id]) {
        rx->error = EPROTO;
        return;
    }
    const char *data = ring->shared + id * SHARED_BUFFER + ring->shared_used[id];
    ring->shared_used[id] += (uint32_t)size;
    if (!rx->freed && !append(rx, data, size))
        rx->error = ENOMEM;
    if (!ring->shared_in_pieces || !(flags & CQE_F_BUF_MORE))
        offer_buffer(ring, id);
    ring->core->stats.receives++;
    if (size >= BULK_BYTES)
        rx->bulk = true;
    if (rx->bulk || rx->used >= UNREAD_BYTES || rx->error)
        stop(ring, rx);
}

void zc_rx_complete(struct zc_ring *ring, uint64_t user_data, int32_t result, uint32_t flags)
{
    uint32_t index = (uint32_t)user_data & ~RECEIVER_MARK;
    struct zc_rx *rx = index < ring->receivers_size ? ring->receivers[index] : NULL;
    if (!rx)
        return;
    int was = rx->armed;
    if (!(flags & IORING_CQE_F_MORE)) {
        rx->armed = 0;
        rx->cancel = rx->cancelled = false;
        link_remove(&rx->work_link); /* the operation was about to be cancelled */
    }
    if (result > 0 && was == ZC_RX_RECEIVE)
        take_bytes(ring, rx, (size_t)result, flags);
    else if (result == 0 && was == ZC_RX_RECEIVE)
        rx->end = true;
    else if (result < 0 && result != -ECANCELED && result != -ENOBUFS && result != -EINTR)
        rx->error = -result;
    if (rx->freed) {
        if (!rx->armed)
            forget(ring, rx);
        return;
    }
    if (!rx->armed && rx->wanted)
        work(ring, rx);
    /*
     * This is told also when the operation was cancelled, or the shared buffers ran out; they are
     * free by now, so the user can arm it again.
     */
    zc_tell(ring->core, &rx->ready.event, ZC_EV_READY);
}

/* Frees all receivers of a closed ring, for which nothing can come any more. */
void zc_rx_close(struct zc_ring *ring)
{
    for (uint32_t i = 0; i < ring->receivers_size; i++)
        if (ring->receivers[i])
            forget(ring, ring->receivers[i]);
    free(ring->receivers);
    if (ring->shared)
        munmap(ring->shared, SHARED_SIZE);
}
