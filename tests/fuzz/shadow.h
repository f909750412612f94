/*
 * A shadow of the accounting: it notes plainly what was asked of the accounting.  From that follows
 * what each request may hold, what may be told, and what the counters must say.
 *
 * It knows the sends of the program, but not how the accounting arranges them.  Staged sends share
 * runs with their neighbours, which cannot be seen from outside; where that matters, the shadow
 * demands less (`staged`).
 */
#ifndef SHADOW_H
#define SHADOW_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "zc.h"

/* Limits for one input, which ends when it reaches one of them. */
#define MOST_CONTEXTS 8
#define MOST_SOCKETS 16
#define MOST_SENDS 600
#define MOST_PARTS 8000
#define MOST_GENERATIONS 1500
#define MOST_REQUESTS 1500
#define MOST_COVERS 6000
#define MOST_SEGMENTS 20000
/* A limit for one request or send. */
#define MOST_VECTOR 1100
/* A limit for one call that sends many. */
#define MOST_DATAGRAMS 70
/* The accounting only passes a socket's descriptor on: here it is the socket's index, from this on. */
#define FIRST_DESCRIPTOR 1000

struct piece {
    const char *at;
    size_t size;
};

struct context {
    zc_ctx *handle; /* NULL: freed */
    uint64_t first, generations;
    size_t window, threshold, wanted;
    int policy;
    bool by_hand, until_taken, ever_staged, ever_many;
    bool any_window; /* a send may fit of whose size the shadow does not know */
    uint64_t bytes_sent, sends;
    bool window_due; /* a send that was refused fits by now, and that was not told yet */
};

struct socket {
    zc_sock *handle; /* NULL: freed */
    int kind;
    bool can_zero_copy, suspended, takes_trains;
    int error;       /* as the accounting said last */
    bool may_break;  /* it was broken on purpose */
    bool was_reset, may_be_reset;
    bool owed;       /* a shutdown or reset that was not handed out yet */
    uint32_t next_number;
    int flying;      /* requests without a result */
    size_t requests; /* that have not ended */
    int order[MOST_SENDS]; /* its sends, in the order in which they have to leave */
    int sends;
};

struct generation {
    struct context *ctx;
    uint64_t number;
    bool flushed, released;
};

/* One send of the program. */
struct sent {
    struct context *ctx;
    struct socket *sock;
    struct generation *gen;
    const struct piece *parts;
    size_t count, size, taken, weight;
    uint64_t ticket;
    uint32_t flags;
    int covering; /* requests that have not ended */
    bool flying, staged, cancelled, failed, done;
    bool result_told, failure_told;
};

struct cover {
    struct sent *send;
    size_t from, bytes;
};

struct request {
    struct socket *sock;
    uint64_t user_data, bytes;
    size_t segment; /* of a train */
    bool zero_copy, result_seen, notif_seen, ended, numbered;
    uint32_t number;
    struct cover *covers;
    int count;
    const struct piece *segments;
    int vector;
};

struct shadow {
    zc_core *core;
    const char *staging;
    size_t staging_size;
    struct context contexts[MOST_CONTEXTS];
    struct socket sockets[MOST_SOCKETS];
    struct generation generations[MOST_GENERATIONS];
    struct sent sends[MOST_SENDS];
    struct piece parts[MOST_PARTS];
    struct request requests[MOST_REQUESTS];
    struct cover covers[MOST_COVERS];
    struct piece segments[MOST_SEGMENTS];
    int n_contexts, n_sockets, n_generations, n_sends, n_parts, n_requests, n_covers, n_segments;
    int live_requests;
    uint64_t completions, strays;
};

extern struct shadow shadow;
extern bool trace; /* ZC_FUZZ_TRACE=1: each operation is printed */

#define TRACE(...) (trace ? (void)fprintf(stderr, __VA_ARGS__) : (void)0)
#define CHECK(condition, ...) \
    ((condition) ? (void)0 \
                 : (fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition), \
                    fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), abort()))

/* shadow.c */
bool owed(const struct sent *send);
bool settled(const struct sent *send);
size_t unreleased(const struct context *ctx);
bool fits(const struct context *ctx, size_t size);
struct sent *accept_send(struct context *ctx, struct socket *sock, const struct piece *parts,
                         size_t count, size_t size, size_t weight, uint32_t flags, int64_t answer);
struct generation *find_generation(struct context *ctx, uint64_t number);
struct generation *open_generation(struct context *ctx);
void cancel_sends(struct context *ctx, bool reset, bool only_mutable);
void settle_cancelled(struct socket *sock);
void check_state(void);
void check_end(void);

/* requests.c */
struct request *take_request(void);
void complete(struct request *req, int32_t result, uint32_t flags);
void notify_range(struct socket *sock, uint32_t low, uint32_t high);

/* events.c */
void take_events(int most);
void take_broken(void);
void take_cancels(void);

#endif
