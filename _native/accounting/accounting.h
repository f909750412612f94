/*
 * The accounting: which sends there are, which requests carry them, when their buffers are free.
 * Nothing here makes a system call, so that tests and fuzzing can feed it their own completions.
 */
#ifndef ZC_ACCOUNTING_H
#define ZC_ACCOUNTING_H

#include <limits.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "../zc.h"

/* As in linux/udp.h and linux/socket.h; libraries' headers of some ages do not have them. */
#define SOL_UDP 17
#define UDP_SEGMENT 103

/* A circular doubly linked list; a node that is on no list points to itself. */
struct link {
    struct link *prev, *next;
};

static inline void link_init(struct link *l)
{
    l->prev = l->next = l;
}

static inline bool link_alone(const struct link *l)
{
    return l->next == l;
}

static inline void link_remove(struct link *l)
{
    l->prev->next = l->next;
    l->next->prev = l->prev;
    link_init(l);
}

/* Appends a node that is on no list. */
static inline void link_append(struct link *list, struct link *l)
{
    l->prev = list->prev;
    l->next = list;
    list->prev->next = l;
    list->prev = l;
}

#define container(ptr, type, member) ((type *)((char *)(ptr) - offsetof(type, member)))

/* Something to tell Python.  Embedded in the object it is about, so that telling never allocates. */
struct event {
    struct link link;
    int kind;
};

/* The event of a receiver, of which the accounting knows only a number. */
struct ready_event {
    struct event event;
    uint64_t id;
};

/* The largest memory that the kernel takes as one registered buffer. */
#define REGION_MAX_BYTES ((size_t)1 << 30)
/*
 * Gathering stops at a share of the window, clamped between these two.  A request is held as a
 * whole, so one as large as the window would leave the network idle until its release.
 */
#define GATHER_BYTES ((size_t)1 << 20)
#define GATHER_BYTES_MOST ((size_t)4 << 20)
/* It also stops at this share of what may be pinned, if that is bounded. */
#define LOCKABLE_SHARE 8u
#define GATHER_BUFFERS 128u
/*
 * A held request keeps its slot for as long as its peer likes.  So one socket may hold at most this
 * share of the slots.  An equal share is kept for requests that are copied, whose slots are free with
 * their results, so that a quick peer always finds one.
 */
#define SLOTS_SHARE 4u
/* From this size on registered memory, which is not pinned at each send, is zero-copied anyway. */
#define REGISTERED_ZERO_COPY ((size_t)16 << 10)
/* Buffers of one send on a stream; a datagram takes UIO_MAXIOV, since it cannot be cut. */
#define SEND_MAX_BUFFERS ((size_t)1 << 20)
/*
 * How much may wait in the queues before a send asks for a turn at once: a share of the window,
 * within these limits.  Of staged bytes it is less, so that their slabs stay in the processor's
 * second cache.
 */
#define TURN_BYTES ((size_t)256 << 10)
#define TURN_BYTES_MOST ((size_t)4 << 20)
#define TURN_BYTES_STAGED ((size_t)512 << 10)
#define TURN_SENDS 4096u
/* After this many sends the caller looks at the clock, since other tasks may have to run. */
#define LOOK_SENDS 256u
/*
 * How many pages of 4 KiB a zero-copied datagram may touch: the kernel's MAX_SKB_FRAGS; for more it
 * answers EMSGSIZE.
 */
#define DATAGRAM_PAGES 17u
#define PAGE_BYTES ((uintptr_t)4096)
/* A datagram socket with a full buffer parks its requests; this many at most. */
#define DATAGRAMS_IN_FLIGHT 64u
/* This share of the window is a batch: a generation that has so many bytes is flushed by itself. */
#define WINDOW_SHARE 4u
/* A generation of this many sends is flushed as well. */
#define ROLL_SENDS 4096u
/* Payload of a train: of the largest UDP datagram over IPv4, in which the kernel makes it. */
#define TRAIN_BYTES 65507u
/* Its datagrams: UDP_MAX_SEGMENTS of the kernel before Linux 6.9; 128 since. */
#define TRAIN_SEGMENTS 64u
/* After the kernel has refused a train, its datagrams go one by one this often before one is tried. */
#define CUT_TRAINS 256u
/* One run of staged sends fills one slab; a socket has this many at most. */
#define STAGE_SLAB ((size_t)64 << 10)
#define STAGE_SHARE 16u
/* A socket whose zero-copy requests were copied this often in a row is sent to by copying... */
#define COPIED_IN_A_ROW 4u
/* ...for this many requests, and twice as many after each probe that is copied, up to a limit. */
#define COPY_REQUESTS 32u
#define COPY_REQUESTS_MOST 4096u
/*
 * The most that one turn submits, so that other tasks of the event loop run within milliseconds:
 * over loopback a small send takes some 5 us, and a MiB that is copied 500 us.
 */
#define TURN_REQUESTS 128u
#define TURN_SUBMITS_BYTES ((size_t)4 << 20)
/*
 * After ENOMEM (RLIMIT_MEMLOCK) this many requests go out by copying before zero copy is tried again,
 * unless a notification makes room before that.
 */
#define DENIED_REQUESTS 64u

/* Registered buffers of a ring; a pool is one or a few of them. */
#define MAX_REGIONS 256u
/* In place of the index of a region. */
#define NO_REGION UINT32_MAX
/* Staging memory, whether it is registered or not. */
#define STAGE_REGION (MAX_REGIONS + 1u)

struct zc_region {
    const char *memory;
    size_t size; /* 0: the index is free */
};

struct zc_stage {
    char *memory; /* NULL: there is no staging memory */
    bool *taken;
    size_t slabs, first; /* no slab before `first` is free */
};

struct zc_core {
    struct zc_stage stage;
    struct link events;  /* struct event */
    struct link ready;   /* struct zc_sock: something to submit */
    struct link cancels; /* struct zc_req: ask the kernel to cancel it */
    struct link broken;  /* struct zc_sock: shut down or reset it */
    struct link lingering; /* struct zc_sock: idle, but not for `linger` yet; the longest first */
    struct link watched;   /* struct zc_sock: the program may close it without telling the ring */
    struct link lost;      /* moved from `watched`: another descriptor of it is looked for */
    uint32_t watched_count; /* on both lists */
    bool ticking;          /* Python was told that a tick is wanted */
    uint64_t now, linger;  /* ticks; 0: idle sockets are reported at once */
    struct link contexts, sockets, requests;
    struct zc_req **slots;
    struct zc_req **numbered; /* of `max_requests` places, see numbers.c */
    uint32_t *sequences; /* of each slot: the upper half of user_data */
    uint32_t *free_slots;
    uint32_t slots_used, free_count, max_requests;
    struct zc_region regions[MAX_REGIONS];
    uint32_t regions_used; /* no index from this one on is in use */
    uint32_t open_requests; /* requests that were built and have not ended */
    size_t most_pinned; /* bytes that a request gathers at most of memory that is not registered */
    uint32_t copy_left; /* requests left that go out by copying, see DENIED_REQUESTS */
    size_t waiting_bytes;      /* queued since the last turn */
    uint32_t waiting_sends;
    size_t turn_bytes;         /* bytes that this turn may still submit... */
    uint32_t turn_requests;    /* ...in this many requests */
    pthread_t owner; /* the thread that may send... */
    bool disowned;   /* ...but not in a forked child */
    int64_t alloc_budget; /* for tests: how many allocations may still succeed; -1 is no limit */
    struct zc_stats stats;
};

struct zc_ctx {
    struct link link; /* core->contexts */
    struct event window_event;
    uint64_t id, next_generation;
    int policy;
    bool by_hand; /* generations do not roll */
    bool may_reset; /* its held sends may have to be reset, even those that nobody can change */
    bool until_taken; /* the window counts bytes until the kernel takes them, not until release */
    size_t window, threshold;
    size_t alone; /* bytes below which a send that needs no queue is copied */
    size_t unreleased; /* bytes of sends that are not settled, each broadcast counted once */
    size_t wanted;     /* the smallest send that was refused; 0: none waits */
    struct zc_gen *open;
    struct link gens; /* struct zc_gen: the open one and the flushed ones not yet released */
    uint32_t untold;  /* released generations whose event has not been taken */
    struct zc_ctx_stats stats; /* unreleased_bytes is kept in `unreleased` */
};

struct zc_gen {
    struct link link; /* ctx->gens */
    struct event released_event;
    struct zc_ctx *ctx;
    struct link sends; /* struct zc_send, by gen_link */
    uint64_t number;
    size_t bytes;
    uint32_t total; /* all sends that have joined */
    bool flushed;
};

enum send_state { SEND_QUEUED, SEND_IN_FLIGHT, SEND_HELD };

/*
 * A send is retired when nothing refers to it: `refs` counts the queue (until all of its bytes have
 * been taken, or it failed) and every request that covers it (until that request's last CQE).
 */
struct zc_send {
    struct link gen_link, sock_link;
    struct event failed_event, result_event;
    struct zc_gen *gen; /* NULL once the send is settled */
    struct zc_sock *sock;
    enum send_state state;
    uint32_t refs, flags;
    uint32_t count; /* how many sends of the program this is: a staged run or a train is many */
    uint32_t segment; /* for a train: bytes of each of its datagrams but the last; 0: it is none */
    size_t size, done, weight;
    uint32_t at;   /* the first buffer with bytes left to take... */
    size_t offset; /* ...and where they begin in it */
    uint32_t region; /* the region in which it is one piece, or NO_REGION */
    uint64_t ctx_id, ticket; /* for the result event */
    uint64_t order; /* its place among the sends of its socket */
    char *slab;              /* for a staged run */
    struct sockaddr_storage *to; /* for a datagram with an address */
    socklen_t to_size;
    int error;
    bool queue_ref, copied, force_copy, cancelled, retired;
    bool registered; /* a part of it is registered */
    bool continues;  /* its first bytes continue a send of the program that began before it */
    uint32_t buffers;
    struct iovec one;
    struct iovec *iov; /* &one, or an allocation */
};

struct zc_req {
    struct link link;        /* core->requests */
    struct link sock_link;   /* sock->requests */
    struct link cancel_link; /* core->cancels */
    struct zc_sock *sock;
    struct zc_send **covered; /* `sends` of them, each kept by its `refs` */
    uint32_t sends, slot, buffers;
    uint32_t touched; /* of how many of them, from the first on, bytes were taken */
    size_t bytes;
    uint32_t number;           /* its MSG_ZEROCOPY number, see numbers.c... */
    struct zc_req *same_place; /* ...and the next request there */
    bool zero_copy, result_seen, notif_seen, copied, has_number;
    struct msghdr msg;
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(sizeof(uint16_t))]; /* for a train */
    struct iovec iov[]; /* `buffers` of them, then `covered` */
};

struct zc_sock {
    struct link link; /* core->sockets */
    struct link ready_link, broken_link, work_link, linger_link, watch_link;
    uint64_t idle_since;
    struct event idle_event;
    struct link sends;    /* struct zc_send, in the order of the calls, until retired */
    struct link requests; /* struct zc_req that still await a CQE */
    struct zc_send *head; /* the first send with bytes left to submit; NULL: none */
    uint64_t id;
    int fd, kind, error;
    int program_fd; /* the program's descriptor, if it may close that without telling the ring */
    uint32_t in_flight; /* requests without a result */
    uint32_t open_requests, numbered; /* requests that have not ended; those that have a number */
    uint32_t slabs;     /* slabs of staging memory that it has */
    uint32_t copied_in_a_row, copy_left, copy_next; /* see zc_sock_learn */
    uint32_t untold;    /* failures whose event has not been taken */
    bool can_zero_copy, reset, suspended;
    bool kernel_tls; /* the kernel encrypts what is sent */
    bool sent_to; /* it was sent to since it was last looked at */
    bool closed, ended; /* the program has closed it; its connection was ended after that */
    uint64_t inode;
    uint64_t order;    /* of the send that was queued last */
    bool takes_trains; /* it is a UDP socket, and this kernel has UDP_SEGMENT */
    uint32_t cut_from, cut_left; /* from this size on, this often, no train is made; 0: none was refused */
    /* For the drivers without io_uring: no room until the socket is writable... */
    bool blocked;
    /* ...and what is known about its numbers, see numbers.c and epoll.c. */
    bool knows_next_number, reads_errors;
    uint32_t next_number;
    uint64_t forks; /* the count of forks when it was attached */
    size_t most_zero_copy; /* bytes; SIZE_MAX: no limit but the driver's own */
    bool sweep; /* a cancelled send is in flight: look again at the next result */
};

static inline size_t within(size_t size, size_t least, size_t most)
{
    return size < least ? least : size > most ? most : size;
}

/* The share of a context's window that is a batch, clamped to limits. */
static inline size_t batch_bytes(const struct zc_ctx *ctx, size_t least, size_t most)
{
    return within(ctx->window / WINDOW_SHARE, least, most);
}

/*
 * What the files offer each other, from the lowest layer to the highest: each file calls only
 * itself and those listed before it here.  Some offer only what is in zc.h.
 */

/* core.c */
void *zc_alloc(struct zc_core *core, size_t size);
void zc_free(struct zc_core *core, void *memory);
void zc_tell(struct zc_core *core, struct event *event, int kind);

/* regions.c */
uint32_t zc_region_of(const struct zc_core *core, const struct iovec *iov);

/* txctx.c */
struct zc_gen *zc_gen_open(struct zc_core *core, struct zc_ctx *ctx);
void zc_gen_roll(struct zc_core *core, struct zc_ctx *ctx);
void zc_gen_check(struct zc_core *core, struct zc_gen *gen);
void zc_gen_flush(struct zc_core *core, struct zc_gen *gen);

/* stage.c */
char *zc_take_slab(struct zc_stage *stage);
void zc_give_slab(struct zc_stage *stage, const char *memory);

/* sock.c */
void zc_sock_make_ready(struct zc_core *core, struct zc_sock *sock);
void zc_sock_block(struct zc_sock *sock);
void zc_sock_unblock(struct zc_core *core, struct zc_sock *sock);
void zc_sock_count_copy(struct zc_core *core, struct zc_sock *sock);
void zc_sock_used(struct zc_core *core, struct zc_sock *sock);
void zc_sock_check_idle(struct zc_core *core, struct zc_sock *sock);

/* send.c */
struct zc_send *zc_send_new(struct zc_core *core, struct zc_ctx *ctx, struct zc_gen *gen,
                            struct zc_sock *sock, size_t buffers, const void *to, size_t to_size);
void zc_send_grow(struct zc_core *core, struct zc_send *send, size_t size, uint32_t count);
void zc_send_set_state(struct zc_core *core, struct zc_send *send, enum send_state state);
void zc_send_note_failure(struct zc_core *core, struct zc_send *send, int error);
void zc_send_fail(struct zc_core *core, struct zc_send *send, int error);
void zc_send_leave_queue(struct zc_core *core, struct zc_send *send);
void zc_send_unref(struct zc_core *core, struct zc_send *send);
void zc_send_forget_told(struct zc_core *core, struct zc_send *send);
void zc_send_forget(struct zc_core *core, struct zc_send *send);

/* queue.c */
void zc_sock_append(struct zc_core *core, struct zc_send *send);
void zc_sock_put_back(struct zc_sock *sock, struct zc_send *send);
struct zc_send *zc_sock_next_send(const struct zc_sock *sock, struct zc_send *send);
void zc_sock_break(struct zc_core *core, struct zc_sock *sock, int error, bool reset);
void zc_sock_sweep(struct zc_core *core, struct zc_sock *sock);

/* cancel.c */

/* taking.c */
bool zc_may_send(const struct zc_core *core);
bool zc_window_full(struct zc_ctx *ctx, size_t size);
int64_t zc_enqueue(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                   const char *const *data, const size_t *sizes, size_t count, size_t total,
                   uint32_t flags, const char *to, size_t to_size);
void zc_count_direct(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock, size_t taken,
                     uint32_t sends);

/* trains.c */
size_t zc_train_bytes(struct zc_sock *sock, size_t segment);
size_t zc_next_train(struct zc_sock *sock, const size_t *sizes, size_t count, size_t *bytes);
bool zc_is_train_refused(int error);
void zc_refuse_trains(struct zc_sock *sock, size_t segment);
void zc_mark_train(struct msghdr *msg, void *control, size_t size, uint32_t segment);
int zc_cut_train(struct zc_core *core, struct zc_send *train);

/* requests.c */
bool zc_goes_zero_copy(const struct zc_core *core, const struct zc_ctx *ctx,
                       const struct zc_sock *sock, size_t size, size_t datagram, bool registered);
void zc_begin_turn(struct zc_core *core);
bool zc_turn_is_spent(const struct zc_core *core);
struct zc_req *zc_build_request(struct zc_core *core);
struct zc_req *zc_find_request(struct zc_core *core, uint64_t user_data);
uint64_t zc_request_user_data(const struct zc_core *core, const struct zc_req *req);
void zc_give_slot(struct zc_core *core, struct zc_req *req);

/* numbers.c */
struct zc_req *zc_find_number(struct zc_core *core, const struct zc_sock *sock, uint32_t number);
void zc_number(struct zc_core *core, struct zc_req *req, uint32_t number);
void zc_forget_number(struct zc_core *core, struct zc_req *req);
void zc_sock_lose_count(struct zc_sock *sock);
uint64_t zc_forks(void);

/* completions.c */

/* events.c */

#endif
