/* A ring and its driver, and the constants that liburing 2.3's header does not have. */
#ifndef ZC_RING_H
#define ZC_RING_H

#include <errno.h>
#include <liburing.h>

#include "../accounting/accounting.h"

#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE (1U << 3)
#endif
#ifndef IORING_NOTIF_USAGE_ZC_COPIED
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

#define MAX_ENTRIES 32768u
#define MAX_REQUESTS (1u << 16)
/* user_data of cancellations and probes; its slot number is too high for any request. */
#define NOBODY UINT64_MAX
/* Marks a user_data that holds the index of a receiver; requests have lower numbers there. */
#define RECEIVER_MARK 0x80000000u
/* Buffers that receivers share. */
#define SHARED_BUFFERS 32u

struct zc_ring;

struct zc_driver {
    int (*submit)(struct zc_ring *ring); /* how many requests went out, or -errno */
    void (*reap)(struct zc_ring *ring);
    int (*attach)(struct zc_ring *ring, struct zc_sock *sock); /* or NULL */
    void (*detach)(struct zc_ring *ring, int fd);              /* or NULL */
    /* Puts memory into the driver's table, or takes it out (size 0); or NULL: it has none. */
    int (*set_region)(struct zc_ring *ring, uint32_t index, const char *memory, size_t size);
    void (*close)(struct zc_ring *ring);                       /* or NULL */
    bool tells_by_socket; /* notifications are read from the socket */
};

struct zc_ring {
    struct zc_core *core;
    const struct zc_driver *driver;
    struct io_uring uring;
    struct zc_ring_info info;
    int own_fd; /* the eventfd of an io_uring, or the inner epoll; -1: none */
    uint64_t submits;
    uint32_t reaps_left; /* completions that this turn may still take */
    uint64_t forks; /* the count of forks that was taken into account, see epoll.c */
    bool has_buffer_table;
    int scan_next, scan_end; /* descriptors of the process that are looked at, see closed.c */
    char *stage_memory;
    size_t stage_size;
    /* For receivers, see receive.c. */
    struct zc_rx **receivers; /* NULL where one was freed */
    uint32_t receivers_size, receivers_free; /* no index before receivers_free is free */
    struct link receiver_work;
    char *shared; /* the buffers, and behind them... */
    struct io_uring_buf_ring *shared_ring;
    uint32_t shared_used[SHARED_BUFFERS]; /* bytes of each that completions have brought */
    bool shared_in_pieces;
};

extern const struct zc_driver zc_uring_driver, zc_msg_zerocopy_driver, zc_copy_driver;

/* One sendmsg that copies and does not wait: how many bytes the kernel took, or -errno. */
static inline ssize_t send_now(int fd, const struct msghdr *msg)
{
    ssize_t sent;
    do
        sent = sendmsg(fd, msg, MSG_DONTWAIT | MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent < 0 ? -errno : sent;
}

/*
 * What the files offer each other, from the lowest layer to the highest; all are above the accounting.
 */

/* memory.c */

/* files.c */

/* receive.c */
void zc_rx_submit(struct zc_ring *ring);
void zc_rx_complete(struct zc_ring *ring, uint64_t user_data, int32_t result, uint32_t flags);
void zc_rx_close(struct zc_ring *ring);

/* closed.c */
bool zc_close_duplicate(struct zc_ring *ring, struct zc_sock *sock);
void zc_disconnect(int fd);

/* uring.c */

/* setup.c */
int zc_uring_open(struct zc_ring *ring, uint32_t entries, int wake, const char **step);

/* epoll.c */
int zc_epoll_open(struct zc_ring *ring, bool zero_copy, const char **step);

/* direct.c */

/* attach.c */

/* ring.c */

#endif
