/*
 * A fuzz target for the native accounting: each input is a series of operations on one core, as a
 * program and a kernel might carry them out, in any order, while allocations fail.
 *
 * `make fuzz` runs it.  ZC_FUZZ_TRACE=1 prints the operations of an input.
 */
#include <errno.h>
#include <string.h>

#include "operations.h"

#define SLAB ((size_t)64 << 10)
#define SLABS_OF_A_SOCKET 16
#define MOST_FINISHED ((size_t)16 << 20)

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc;
    (void)argv;
    trace = getenv("ZC_FUZZ_TRACE") != NULL;
    return 0;
}

static void fail_socket(struct socket *sock)
{
    TRACE("fail socket %td\n", sock - shadow.sockets);
    sock->may_break = true;
    CHECK(zc_sock_fail(shadow.core, sock->handle, ECONNRESET) == 0, "failing a socket");
}

static void reset_context(struct context *ctx, int only_mutable)
{
    TRACE("reset context %td, only changeable: %d\n", ctx - shadow.contexts, only_mutable);
    CHECK(zc_ctx_reset(shadow.core, ctx->handle, ETIMEDOUT, only_mutable) >= 0, "resetting");
    cancel_sends(ctx, true, only_mutable);
}

static void reset_all(void)
{
    TRACE("reset all\n");
    CHECK(zc_core_reset(shadow.core, ECONNABORTED) == 0, "resetting all");
    for (int i = 0; i < shadow.n_contexts; i++)
        cancel_sends(&shadow.contexts[i], true, false);
}

/* Whether anything of a socket is known to be under way. */
static bool busy(const struct socket *sock)
{
    bool found = sock->requests > 0;
    for (int i = 0; !found && i < sock->sends; i++)
        found = owed(&shadow.sends[sock->order[i]]);
    return found;
}

static void suspend(struct socket *sock, bool free)
{
    int err = free ? zc_sock_free(shadow.core, sock->handle)
                   : zc_sock_suspend(shadow.core, sock->handle);
    TRACE("%s socket %td: %d\n", free ? "free" : "suspend", sock - shadow.sockets, err);
    CHECK(err == 0 || err == -EBUSY, "suspending: %d", err);
    if (err)
        return;
    CHECK(!busy(sock), "a busy socket is let go of");
    CHECK(!sock->owed, "a socket is let go of that has to be shut down or reset");
    sock->suspended = true;
    if (free)
        sock->handle = NULL;
}

static void resume(struct socket *sock)
{
    int err = zc_sock_resume(shadow.core, sock->handle,
                             FIRST_DESCRIPTOR + (int)(sock - shadow.sockets));
    CHECK(err == (sock->suspended ? 0 : -EINVAL), "resuming: %d", err);
    sock->suspended = false;
}

static void free_context(struct context *ctx)
{
    bool unreleased = false;
    for (int i = 0; i < shadow.n_generations; i++)
        unreleased |= shadow.generations[i].ctx == ctx && !shadow.generations[i].released;
    int err = zc_ctx_free(shadow.core, ctx->handle);
    TRACE("free context %td: %d\n", ctx - shadow.contexts, err);
    CHECK(err == (unreleased ? -EBUSY : 0), "freeing a context: %d", err);
    if (!err)
        ctx->handle = NULL;
}

/* A notification that may be early, as of a request that was linked to another. */
static void notify(void)
{
    struct request *req = some_request(next(8) > 0);
    struct socket *sock = some_socket();
    if (numbered && sock && !sock->suspended)
        notify_range(sock, sock->next_number - 1 - next(8), sock->next_number - 1 + next(2));
    else if (!numbered && req && req->zero_copy)
        complete(req, 0, ZC_NOTIF | (uint32_t)ONE_OF(0, ZC_COPIED));
}

/* A stray completion: of a request that has ended, or a second one. */
static void stray(void)
{
    if (!shadow.n_requests)
        return;
    struct request *req = &shadow.requests[next(256) % (uint32_t)shadow.n_requests];
    bool notif = next(2);
    if (req->ended || (notif ? req->notif_seen : req->result_seen))
        complete(req, 100, notif ? ZC_NOTIF : ZC_MORE);
}

static void starve(void)
{
    struct zc_request_view view;
    zc_core_alloc_budget(shadow.core, 0);
    CHECK(zc_next_request(shadow.core, &view) == 0, "a request without memory");
    zc_core_alloc_budget(shadow.core, -1);
}

static void let_time_pass(void)
{
    static uint64_t now;
    now += next(12);
    CHECK(zc_core_advance(shadow.core, now) == 0, "time");
    if (next(4) == 0)
        CHECK(zc_core_linger(shadow.core, next(12)) == 0, "lingering");
}

static void operate(void)
{
    uint32_t operation = next(70);
    struct context *ctx = NULL;
    struct socket *sock = NULL;
    struct request *req = NULL;
    switch (operation) {
    case 0 ... 13:
        send_parts(1, false);
        break;
    case 14 ... 19:
        send_parts(2 + next(5), false);
        break;
    case 20:
        send_parts((size_t)ONE_OF(100, 127, 128, 129, 300, 1025), true);
        break;
    case 21 ... 23:
        broadcast();
        break;
    case 24 ... 29:
        take((uint32_t)ONE_OF(1, 1, 2, 99));
        break;
    case 30 ... 37:
        if ((req = some_request(false)))
            result(req);
        break;
    case 38 ... 43:
        notify();
        break;
    case 44 ... 46:
        take_events(1 + (int)next(16));
        break;
    case 47:
        stray();
        break;
    case 48:
        starve();
        break;
    case 49:
        let_time_pass();
        break;
    case 50:
        take_broken();
        break;
    case 51:
        take_cancels();
        break;
    case 52:
        new_context();
        break;
    case 53:
        new_socket();
        break;
    case 54 ... 56:
        if ((ctx = some_context())) {
            TRACE("cancel context %td\n", ctx - shadow.contexts);
            CHECK(zc_ctx_cancel(shadow.core, ctx->handle) == 0, "cancelling");
            cancel_sends(ctx, false, false);
        }
        break;
    case 57:
        if ((ctx = some_context()))
            reset_context(ctx, (int)next(2));
        break;
    case 58:
        if ((ctx = some_context()))
            free_context(ctx);
        break;
    case 59:
    case 60:
        if ((ctx = some_context()))
            flush(ctx, (int)next(2));
        break;
    case 61:
        if ((sock = some_socket()))
            suspend(sock, next(2));
        break;
    case 62:
        if ((sock = some_socket())) {
            resume(sock);
            CHECK(!zc_sock_tell_idle(shadow.core, sock->handle) || !busy(sock),
                  "a busy socket is idle");
        }
        break;
    case 64 ... 66:
        send_segments();
        break;
    case 67 ... 69:
        send_many();
        break;
    default:
        switch (next(16)) {
        case 0:
            reset_all();
            break;
        case 1:
            CHECK(zc_core_lockable(shadow.core, (size_t)next(256) << 20) == 0, "lockable");
            break;
        default:
            /* A suspended socket has no descriptor that could be shut down. */
            if ((sock = some_socket()) && !sock->suspended)
                fail_socket(sock);
        }
    }
    check_state();
}

static bool room_is_left(void)
{
    return shadow.n_sends < MOST_SENDS - MOST_DATAGRAMS - 10 && shadow.n_parts < MOST_PARTS - MOST_VECTOR &&
           shadow.n_generations < MOST_GENERATIONS - 10 &&
           shadow.n_requests < MOST_REQUESTS / 2 && shadow.n_covers < MOST_COVERS / 2 &&
           shadow.n_segments < MOST_SEGMENTS / 2;
}

/* Gives up what would take too many requests. */
static void fail_large(void)
{
    for (int i = 0; i < shadow.n_sends; i++)
        if (owed(&shadow.sends[i]) && shadow.sends[i].size > MOST_FINISHED)
            fail_socket(shadow.sends[i].sock);
    check_state();
}

/* Completes and releases everything. */
static void finish(void)
{
    bool more = true;
    numbered = false;
    for (int i = 0; i < shadow.n_contexts; i++)
        if (shadow.contexts[i].handle)
            flush(&shadow.contexts[i], 0);
    fail_large();
    while (more) {
        take(99);
        more = shadow.live_requests > 0;
        for (int i = 0; i < shadow.n_requests; i++)
            if (!shadow.requests[i].result_seen)
                complete(&shadow.requests[i], (int32_t)shadow.requests[i].bytes,
                         shadow.requests[i].zero_copy ? ZC_MORE : 0);
        for (int i = shadow.n_requests - 1; i >= 0; i--)
            if (!shadow.requests[i].ended)
                complete(&shadow.requests[i], 0, ZC_NOTIF);
        check_state();
        take_broken();
        take_cancels();
        take_events(16);
    }
    for (int i = 0; i < MOST_GENERATIONS + MOST_SENDS; i += 16)
        take_events(16);
    check_end();
    for (int i = 0; i < shadow.n_contexts; i++)
        if (shadow.contexts[i].handle)
            free_context(&shadow.contexts[i]);
    for (int i = 0; i < shadow.n_sockets; i++)
        if (shadow.sockets[i].handle) {
            suspend(&shadow.sockets[i], true);
            CHECK(!shadow.sockets[i].handle, "a socket with nothing on it is not let go of");
        }
    struct zc_stats stats;
    zc_core_stats(shadow.core, &stats);
    CHECK(stats.allocations == 0, "%llu allocations are left",
          (unsigned long long)stats.allocations);
}

/* Checks that each slab is free again: all of them can be taken at the same time. */
static void check_slabs(size_t slabs, const char *memory)
{
    zc_ctx *ctx = zc_ctx_new(shadow.core, 0, 0, SIZE_MAX >> 1, ZC_POLICY_AUTO, 2 * SLAB);
    zc_sock *sock = NULL;
    for (size_t i = 0; i < slabs; i++) {
        if (i % SLABS_OF_A_SOCKET == 0)
            sock = zc_sock_new(shadow.core, i, 0, ZC_STREAM, 1);
        CHECK(ctx && sock, "a context and a socket");
        int64_t sent = zc_queue(shadow.core, ctx, sock, memory, SLAB, 0);
        CHECK(sent >= 0 && sent & ZC_SENT_COPIED, "slab %zu of %zu is lost", i, slabs);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    begin_input(data, size);
    memset(&shadow, 0, offsetof(struct shadow, generations));
    shadow.n_contexts = shadow.n_sockets = shadow.n_generations = shadow.n_sends = 0;
    shadow.n_parts = shadow.n_requests = shadow.n_covers = shadow.n_segments = 0;
    shadow.live_requests = 0;
    shadow.completions = shadow.strays = 0;

    uint32_t most_requests = (uint32_t)ONE_OF(200, 200, 1, 3);
    size_t slabs = (size_t)ONE_OF(0, 1, 3, 20);
    shadow.core = zc_core_new((uint32_t)ONE_OF(0, UINT32_MAX), most_requests);
    CHECK(shadow.core, "a core");
    char *staging = slabs ? malloc(slabs * SLAB) : NULL;
    CHECK(!slabs || staging, "staging memory");
    shadow.staging = staging;
    shadow.staging_size = slabs * SLAB;
    if (slabs)
        CHECK(zc_core_stage(shadow.core, staging, slabs * SLAB) == 0, "staging");
    CHECK(zc_core_linger(shadow.core, (uint32_t)ONE_OF(0, 0, 5)) == 0, "lingering");
    register_regions(next(3));
    numbered = next(3) == 1;
    bool abrupt = next(8) == 1;
    new_context();
    new_context();
    new_socket();
    new_socket();

    while (input_is_left() && room_is_left())
        operate();

    if (!abrupt) {
        finish();
        if (slabs)
            check_slabs(slabs, staging);
    }
    CHECK(zc_core_free(shadow.core) == 0, "a core is freed, and all that was of it");
    free(staging);
    return 0;
}
