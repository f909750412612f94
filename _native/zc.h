/*
 * All of the native part that Python sees.
 *
 * Everything between the two cdef marks is read by build.py as the cffi declarations, so it holds
 * plain declarations only.  Every function that can fail returns a negative errno.  None of them
 * blocks, and none may be called from two threads at once on the same ring: the Python side guards.
 */
#ifndef ZC_H
#define ZC_H

#include <stddef.h>
#include <stdint.h>

/* cdef begin */

/* The driver that carries the sends of a ring. */
#define ZC_DRIVER_IO_URING 0
#define ZC_DRIVER_MSG_ZEROCOPY 1
#define ZC_DRIVER_COPY 2

/* How a ring tells the event loop that completions wait. */
#define ZC_WAKE_RING_FD 0   /* COOP_TASKRUN, the ring's own descriptor is polled */
#define ZC_WAKE_EVENTFD 1   /* DEFER_TASKRUN, an eventfd is polled */

/* Kinds of a socket. */
#define ZC_STREAM 0         /* bytes in order: one request in flight, neighbours gathered */
#define ZC_DATAGRAM 1       /* one request for each send, many in flight */

/* Which sends go out zero-copy. */
#define ZC_POLICY_AUTO 0    /* from the threshold on; less is staged; learns which sockets copy */
#define ZC_POLICY_ALWAYS 1  /* every send or run of staged ones, whatever was learned */
#define ZC_POLICY_NEVER 2

/* Flags of one send. */
#define ZC_SEND_MUTABLE 1   /* the caller can change this buffer: cancelling must wait for its release */
#define ZC_SEND_UNSTAGED 2  /* never stage it: reading the map of a truncated file raises SIGBUS */
#define ZC_SEND_REPORT 4    /* tell its result */
#define ZC_SEND_FLUSH 8     /* and flush its generation when it succeeds */

/* Low bits of what queueing a send returns; the rest (>> ZC_SENT_SHIFT) is the generation. */
#define ZC_SENT_TURN 1      /* enough has gathered: take a turn now */
#define ZC_SENT_KICK 2      /* first of some hundred sends: a turn has to come soon; look at the clock */
#define ZC_SENT_COPIED 4    /* to staging memory or the socket: the buffer is the caller's again */
#define ZC_SENT_SHIFT 3

/* What a completion says, in the driver-neutral form that zc_complete takes. */
#define ZC_MORE 1           /* a notification of this request follows */
#define ZC_NOTIF 2          /* this is the notification */
#define ZC_COPIED 4         /* with ZC_NOTIF: the kernel copied the data */

/* Events, four 64-bit integers each: kind, then a, b, c. */
#define ZC_EVENT_FIELDS 4
#define ZC_EV_RELEASED 1    /* a = context, b = generation */
#define ZC_EV_FAILED 2      /* a = context, b = socket, c = errno: one send of that context failed */
#define ZC_EV_RESULT 3      /* a = context, b = ticket, c = errno or 0: result of a ZC_SEND_REPORT send */
#define ZC_EV_WINDOW 4      /* a = context: a send that was refused with EAGAIN fits now */
#define ZC_EV_IDLE 5        /* a = socket: nothing of it is queued, in flight or held */
#define ZC_EV_READY 6       /* a = receiver: look what can be taken */
#define ZC_EV_LATER 7       /* a tick is wanted: a = 1, sockets are idle; 0, some may have been closed */
#define ZC_EV_AGAIN 8       /* something is ready that could not be submitted: take a turn after a pause */
#define ZC_EV_MORE 9        /* the turn has had its share, and there is more: take one after others ran */

/* What a receiver waits for. */
#define ZC_RX_RECEIVE 1     /* bytes, until it is stopped */
#define ZC_RX_POLL 2        /* for the socket to be readable, once */

/* Pages of mapped memory. */
#define ZC_PAGES_ORDINARY 0
#define ZC_PAGES_TRANSPARENT 1 /* huge pages, where the kernel finds some */
#define ZC_PAGES_RESERVED 2    /* huge pages that were reserved (vm.nr_hugepages) */

typedef struct zc_core zc_core;
typedef struct zc_ctx zc_ctx;
typedef struct zc_sock zc_sock;
typedef struct zc_ring zc_ring;
typedef struct zc_rx zc_rx;

struct zc_stats {
    uint64_t sends, bytes_sent, zero_copied, copied, staged, failed;
    uint64_t queued, in_flight, held;
    uint64_t generations_open, generations_released;
    uint64_t requests, registered, refused, completions, strays;
    uint64_t contexts, sockets, allocations;
    uint64_t receivers, receives;
    uint64_t kernel_tls; /* sends that the kernel encrypted */
};

struct zc_ctx_stats {
    uint64_t sends, bytes_sent, zero_copied, copied, staged, failed;
    uint64_t unreleased_sends, unreleased_bytes;
    uint64_t generations_open, generations_released;
};

/* The next request for the kernel; valid until the next call on the same core. */
struct zc_request_view {
    uint64_t user_data;
    uint64_t socket;
    uint64_t bytes;
    uint32_t buffers, sends;
    int zero_copy;
    uint32_t segment; /* of a train */
};

struct zc_ring_info {
    uint32_t setup_flags, sq_entries, cq_entries;
    int wake_fd, report_usage;
    int trains; /* the kernel cuts datagrams */
    char failed_step[32];
};

struct zc_socket_info {
    uint64_t inode;
    int domain, type, protocol, connected, local;
};

/* What is known of a socket from an earlier attachment. */
struct zc_learned {
    uint32_t copied_in_a_row, copy_left, copy_next;
    int knows_next_number; /* of the driver msg_zerocopy */
    uint32_t next_number;
    uint64_t forks;
};

/* --- accounting/ --- */

/* core.c */
zc_core *zc_core_new(uint32_t first_sequence, uint32_t max_requests);
int zc_core_disown(zc_core *core);
void zc_core_stats(const zc_core *core, struct zc_stats *out);
void zc_core_alloc_budget(zc_core *core, int64_t allocations);

/* regions.c */
int zc_core_add_region(zc_core *core, const char *memory, size_t size);
int zc_core_drop_region(zc_core *core, const char *memory);

/* txctx.c */
zc_ctx *zc_ctx_new(zc_core *core, uint64_t id, uint64_t first_generation, size_t window,
                   int policy, size_t threshold);
int zc_ctx_free(zc_core *core, zc_ctx *ctx);
int zc_ctx_by_hand(zc_ctx *ctx);
int zc_ctx_until_taken(zc_ctx *ctx);
int zc_ctx_may_reset(zc_ctx *ctx, int may_reset);
int zc_ctx_copy_alone(zc_ctx *ctx, size_t below);
int64_t zc_ctx_flush(zc_core *core, zc_ctx *ctx, int even_empty);
int64_t zc_ctx_unreleased(const zc_ctx *ctx, int only_mutable);
int zc_ctx_get_stats(const zc_ctx *ctx, struct zc_ctx_stats *out);
uint64_t zc_ctx_generations(const zc_ctx *ctx);
uint64_t zc_ctx_ticket(const zc_ctx *ctx);

/* stage.c */
int zc_core_stage(zc_core *core, char *memory, size_t size);

/* sock.c */
zc_sock *zc_sock_new(zc_core *core, uint64_t id, int fd, int kind, int can_zero_copy);
int zc_sock_watch(zc_core *core, zc_sock *sock, int program_fd);
int zc_sock_encrypted(zc_sock *sock);
int zc_sock_suspend(zc_core *core, zc_sock *sock);
int zc_sock_resume(zc_core *core, zc_sock *sock, int fd);
int zc_sock_free(zc_core *core, zc_sock *sock);
int zc_sock_error(const zc_sock *sock);
int zc_sock_unsent(const zc_sock *sock);
int zc_core_advance(zc_core *core, uint64_t now);
int zc_core_linger(zc_core *core, uint32_t ticks);
int zc_sock_tell_idle(zc_core *core, zc_sock *sock);

/* queue.c */
int zc_sock_fail(zc_core *core, zc_sock *sock, int error);
int zc_sock_reset(zc_core *core, zc_sock *sock, int error);

/* cancel.c */
int zc_ctx_cancel(zc_core *core, zc_ctx *ctx);
int zc_ctx_reset(zc_core *core, zc_ctx *ctx, int error, int only_mutable);
int zc_core_reset(zc_core *core, int error);

/* taking.c */
int zc_ctx_count_direct(zc_ctx *ctx, size_t taken, uint32_t sends);
int64_t zc_queue_vector(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                 const size_t *sizes, size_t count, uint32_t flags);
int64_t zc_queue(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                uint32_t flags);
int64_t zc_queue_to(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                   const size_t *sizes, size_t count, uint32_t flags, const char *to,
                   size_t to_size);
int64_t zc_broadcast(zc_core *core, zc_ctx *ctx, zc_sock *const *socks, size_t count,
                     const char *data, size_t size, uint32_t flags, int32_t *errors);

/* trains.c */
int zc_sock_take_trains(zc_sock *sock, int yes);
int64_t zc_queue_segments(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                          const size_t *sizes, size_t count, size_t from, size_t size,
                          size_t segment, uint32_t flags, const char *to, size_t to_size);
int64_t zc_queue_many(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                      const size_t *sizes, size_t count, uint32_t flags, const char *to,
                      size_t to_size, size_t *taken);

/* requests.c */
int zc_core_lockable(zc_core *core, size_t bytes);
int zc_next_request(zc_core *core, struct zc_request_view *out);
int zc_request_vector(zc_core *core, uint64_t user_data, uint64_t *addresses, uint64_t *sizes,
                      int max_buffers);
int zc_next_cancel(zc_core *core, uint64_t *user_data);
int zc_next_broken(zc_core *core, int *fd, int *reset);

/* numbers.c */
int zc_request_number(zc_core *core, uint64_t user_data, uint32_t number);
void zc_forked(void);

/* completions.c */
int zc_complete(zc_core *core, uint64_t user_data, int32_t result, uint32_t flags);
int zc_notify_range(zc_core *core, zc_sock *sock, uint32_t low, uint32_t high, int copied);

/* events.c */
int zc_events(zc_core *core, int64_t *out, int max_events);
int zc_core_free(zc_core *core);

/* --- ring/ --- */

/* memory.c */
char *zc_map(size_t size, int pages);
size_t zc_mapped_size(size_t size, int pages);
void zc_unmap(char *memory, size_t size, int pages);

/* files.c */
int zc_file_map(int fd, size_t size, char **out);
void zc_file_unmap(char *memory, size_t size);
int zc_file_is_resident(char *memory, size_t size);
int zc_file_populate(char *memory, size_t size);
int zc_file_leave(char *memory, size_t size);

/* receive.c */
int zc_rx_new(zc_ring *ring, int fd, uint64_t id, zc_rx **out);
int zc_rx_free(zc_ring *ring, zc_rx *rx);
int zc_rx_is_armed(const zc_rx *rx);
int64_t zc_rx_ready(const zc_rx *rx);
const char *zc_rx_data(const zc_rx *rx);
int zc_rx_consume(zc_rx *rx, size_t size);
int zc_rx_is_bulk(const zc_rx *rx);
int zc_rx_arm(zc_ring *ring, zc_rx *rx, int what);
int zc_ring_stop_receiving(zc_ring *ring);

/* closed.c */
int zc_ring_look(zc_ring *ring, uint32_t closing_ms, int keep, uint64_t *out, int max);

/* direct.c */
int64_t zc_send_alone(zc_ring *ring, zc_sock *sock, const char *data, size_t size);
int64_t zc_queue_rest(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                      size_t taken);
int64_t zc_queue_or_send(zc_ring *ring, zc_ctx *ctx, zc_sock *sock, const char *data, size_t size,
                     uint32_t flags, const char *to, size_t to_size);
int64_t zc_queue_or_send_segments(zc_ring *ring, zc_ctx *ctx, zc_sock *sock,
                                  const char *const *data, const size_t *sizes, size_t count,
                                  size_t segment, uint32_t flags, const char *to, size_t to_size);
int64_t zc_queue_or_send_many(zc_ring *ring, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                              const size_t *sizes, size_t count, uint32_t flags, const char *to,
                              size_t to_size, size_t *taken);

/* attach.c */
int zc_address(const char *host, uint16_t port, uint32_t flow, uint32_t scope, char *out);
int zc_socket_info(int fd, struct zc_socket_info *out);
zc_sock *zc_ring_attach(zc_ring *ring, int fd, uint64_t id, const struct zc_socket_info *info,
                        const struct zc_learned *learned);
void zc_sock_learned(const zc_sock *sock, struct zc_learned *out);
int zc_ring_suspend(zc_ring *ring, zc_sock *sock);
int zc_ring_resume(zc_ring *ring, zc_sock *sock, int fd);
int zc_ring_detach(zc_ring *ring, zc_sock *sock);

/* ring.c */
int zc_ring_open(int driver, uint32_t entries, int wake, zc_ring **out, struct zc_ring_info *info);
int zc_ring_close(zc_ring *ring);
zc_core *zc_ring_core(zc_ring *ring);
uint64_t zc_ring_submits(const zc_ring *ring);
int zc_ring_register(zc_ring *ring, char *memory, size_t size);
int zc_ring_unregister(zc_ring *ring, char *memory);
int zc_ring_stage(zc_ring *ring, size_t size, int registered);
int zc_ring_turn(zc_ring *ring, int64_t *events, int max_events);

/* cdef end */

#endif
