/* What a program and a kernel do with the accounting, and which answers it may give. */
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "operations.h"

/* A driver that numbers its notifications; they wrap in an early send. */
#define FIRST_NUMBER (UINT32_MAX - 2)

bool numbered;

void new_context(void)
{
    if (shadow.n_contexts == MOST_CONTEXTS)
        return;
    struct context *ctx = &shadow.contexts[shadow.n_contexts];
    *ctx = (struct context){
        .first = (uint64_t)ONE_OF(0, 0, UINT32_MAX, (int64_t)1 << 59),
        .window = (size_t)ONE_OF(1 << 24, 1 << 24, 1, 200, 2000, 1 << 20, (int64_t)1 << 40),
        .policy = (int)ONE_OF(ZC_POLICY_AUTO, ZC_POLICY_AUTO, ZC_POLICY_ALWAYS, ZC_POLICY_NEVER),
        .threshold = (size_t)ONE_OF(0, 100, 16384, 1 << 17),
    };
    uint32_t kind = next(8);
    ctx->handle = zc_ctx_new(shadow.core, (uint64_t)shadow.n_contexts, ctx->first, ctx->window,
                             ctx->policy, ctx->threshold);
    CHECK(ctx->handle, "a context");
    ctx->by_hand = kind == 1;
    ctx->until_taken = kind == 2;
    if (ctx->by_hand)
        zc_ctx_by_hand(ctx->handle);
    if (ctx->until_taken)
        zc_ctx_until_taken(ctx->handle);
    TRACE("context %d: window %zu, policy %d, threshold %zu, kind %u\n", shadow.n_contexts,
          ctx->window, ctx->policy, ctx->threshold, kind);
    shadow.n_contexts++;
}

void new_socket(void)
{
    if (shadow.n_sockets == MOST_SOCKETS)
        return;
    struct socket *sock = &shadow.sockets[shadow.n_sockets];
    int kind = (int)ONE_OF(ZC_STREAM, ZC_STREAM, ZC_DATAGRAM);
    bool can_zero_copy = next(4), takes_trains = kind == ZC_DATAGRAM && next(4);
    memset(sock, 0, sizeof(*sock));
    sock->handle = zc_sock_new(shadow.core, (uint64_t)shadow.n_sockets,
                               FIRST_DESCRIPTOR + shadow.n_sockets, kind, can_zero_copy);
    CHECK(sock->handle, "a socket");
    sock->kind = kind;
    sock->can_zero_copy = can_zero_copy;
    sock->takes_trains = takes_trains;
    CHECK(zc_sock_take_trains(sock->handle, takes_trains) == 0, "trains");
    sock->next_number = FIRST_NUMBER;
    TRACE("socket %d: kind %d, zero copy %d\n", shadow.n_sockets, kind, can_zero_copy);
    shadow.n_sockets++;
}

/* Notes that a send was refused because of the window. */
void refused(struct context *ctx, size_t size)
{
    size = size ? size : 1;
    if (!ctx->wanted || size < ctx->wanted)
        ctx->wanted = size;
}

static uint32_t some_flags(void)
{
    return (uint32_t)ONE_OF(0, 0, 0, ZC_SEND_MUTABLE, ZC_SEND_MUTABLE, ZC_SEND_UNSTAGED,
                            ZC_SEND_UNSTAGED, ZC_SEND_REPORT, ZC_SEND_FLUSH,
                            ZC_SEND_FLUSH | ZC_SEND_MUTABLE);
}

/* Lets one of the next allocations fail, or none. */
int64_t budget(void)
{
    int64_t allocations = ONE_OF(-1, -1, -1, -1, -1, -1, 0, 1, 2, 3);
    zc_core_alloc_budget(shadow.core, allocations);
    return allocations;
}

void check_refusal(struct context *ctx, struct socket *sock, int64_t answer, size_t size,
                   bool room, bool too_large, bool invalid, int64_t allocations)
{
    switch (-answer) {
    case EAGAIN:
        CHECK(!room, "refused by a window with room");
        refused(ctx, size);
        break;
    case ENOMEM:
        CHECK(allocations >= 0, "memory was not out");
        break;
    case EMSGSIZE:
        CHECK(too_large, "not too large");
        break;
    case EINVAL:
        CHECK(invalid, "nothing is wrong with it");
        break;
    case EPIPE:
        CHECK(sock->error, "the socket is not broken");
        break;
    case EBADF:
        CHECK(sock->suspended, "the socket is not suspended");
        break;
    default:
        CHECK(false, "a send is refused with %lld", (long long)answer);
    }
}

void send_parts(size_t count, bool many)
{
    static const char *data[MOST_VECTOR];
    static size_t sizes[MOST_VECTOR];
    struct context *ctx = some_context();
    struct socket *sock = some_socket();
    uint32_t flags = some_flags();
    struct piece *parts = &shadow.parts[shadow.n_parts];
    size_t total = 0, each = many ? next(3) : 0;
    bool overflow = false;
    if (!ctx || !sock)
        return;
    for (size_t i = 0; i < count; i++) {
        parts[i] = some_part(many ? each : some_size());
        data[i] = parts[i].at;
        sizes[i] = parts[i].size;
        overflow |= __builtin_add_overflow(total, sizes[i], &total) || total > SIZE_MAX >> 1;
    }
    bool room = overflow || fits(ctx, total), to = sock->kind == ZC_DATAGRAM && next(2);
    int64_t allocations = budget();
    int64_t answer =
        to ? zc_queue_to(shadow.core, ctx->handle, sock->handle, data, sizes, count, flags,
                        "address", 8)
           : zc_queue_vector(shadow.core, ctx->handle, sock->handle, data, sizes, count, flags);
    zc_core_alloc_budget(shadow.core, -1);
    TRACE("send %zu bytes in %zu parts on socket %td by context %td, flags %x: %lld\n", total,
          count, sock - shadow.sockets, ctx - shadow.contexts, flags, (long long)answer);
    if (answer >= 0) {
        CHECK(!overflow && room && !sock->error && !sock->suspended, "a send that cannot be");
        shadow.n_parts += (int)count;
        accept_send(ctx, sock, parts, count, total, total, flags, answer);
        return;
    }
    bool too_large = overflow || (sock->kind == ZC_DATAGRAM &&
                                  (total > UINT16_MAX || count > UIO_MAXIOV));
    check_refusal(ctx, sock, answer, total, room, too_large, sock->kind == ZC_STREAM && !total,
                  allocations);
}

void broadcast(void)
{
    struct socket *to[5];
    zc_sock *handles[5];
    int32_t errors[5];
    size_t count = 1 + next(5), size = some_size();
    struct context *ctx = some_context();
    uint32_t flags = some_flags();
    for (size_t i = 0; i < count; i++) {
        to[i] = some_socket();
        if (!to[i])
            return;
        handles[i] = to[i]->handle;
    }
    if (!ctx)
        return;
    struct piece *part = &shadow.parts[shadow.n_parts];
    *part = some_part(size);
    bool room = fits(ctx, size);
    int64_t allocations = budget();
    int64_t answer = zc_broadcast(shadow.core, ctx->handle, handles, count, part->at, size, flags,
                                  errors);
    zc_core_alloc_budget(shadow.core, -1);
    TRACE("broadcast %zu bytes to %zu sockets by context %td, flags %x: %lld\n", size, count,
          ctx - shadow.contexts, flags, (long long)answer);
    if (answer == -EAGAIN) {
        CHECK(!room, "refused by a window with room");
        refused(ctx, size);
        return;
    }
    if (answer == -EINVAL) {
        CHECK(size == 0 || size > SIZE_MAX >> 1, "nothing is wrong with it");
        return;
    }
    CHECK(room, "a broadcast that does not fit");
    shadow.n_parts++;
    size_t taken = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(errors[i] != ENOMEM || allocations >= 0, "memory was not out");
        CHECK(!errors[i] || errors[i] == ENOMEM || errors[i] == EMSGSIZE ||
                  (errors[i] == EPIPE && to[i]->error) || (errors[i] == EBADF && to[i]->suspended),
              "error %d", errors[i]);
        if (errors[i])
            continue;
        CHECK(!to[i]->error && !to[i]->suspended, "a send to a broken socket");
        accept_send(ctx, to[i], part, 1, size, size / count + 1, flags, answer);
        taken++;
    }
    CHECK((answer >= 0) == (taken > 0), "a broadcast of %zu sends answers %lld", taken,
          (long long)answer);
}

void flush(struct context *ctx, int even_empty)
{
    struct generation *gen = open_generation(ctx);
    int64_t allocations = budget();
    int64_t number = zc_ctx_flush(shadow.core, ctx->handle, even_empty);
    zc_core_alloc_budget(shadow.core, -1);
    TRACE("flush context %td: %lld\n", ctx - shadow.contexts, (long long)number);
    CHECK(number >= 0 || number == -ENODATA || (number == -ENOMEM && allocations >= 0),
          "flush: %lld", (long long)number);
    if (number < 0)
        return;
    if (!gen || gen->number != (uint64_t)number) {
        /* The open generation had ended by itself. */
        CHECK(even_empty && (uint64_t)number == ctx->first + ctx->generations, "an odd number");
        if (gen)
            gen->flushed = true;
        gen = &shadow.generations[shadow.n_generations++];
        *gen = (struct generation){.ctx = ctx, .number = (uint64_t)number};
        ctx->generations++;
    }
    gen->flushed = true;
}

/* What the kernel may answer; success comes first, since that is what the end of an input chooses. */
static int32_t some_result(const struct request *req)
{
    int64_t bytes = (int64_t)req->bytes;
    if (next(4) < 3)
        return (int32_t)bytes;
    if (req->sock->kind == ZC_DATAGRAM)
        return (int32_t)-ONE_OF(EAGAIN, EINTR, ECANCELED, ENOMEM, ENOBUFS, EOPNOTSUPP, EMSGSIZE,
                                EMSGSIZE, EINVAL, EIO, ECONNREFUSED);
    int64_t taken = ONE_OF(1, 2, 100, 127, 65536, bytes / 2, bytes / 3, bytes - 1, -EAGAIN, -EINTR,
                           -ECANCELED, -ENOMEM, -ENOBUFS, -EOPNOTSUPP, -EPIPE, -ECONNRESET,
                           -EFAULT, 0);
    return (int32_t)(taken > bytes ? bytes : taken);
}

void result(struct request *req)
{
    int32_t result = some_result(req);
    bool more = req->zero_copy && (numbered ? result >= 0 : next(8) > 0);
    if (numbered && more) {
        req->numbered = true;
        req->number = req->sock->next_number++;
        CHECK(zc_request_number(shadow.core, req->user_data, req->number) == 0, "a number");
    }
    complete(req, result, more ? ZC_MORE : 0);
}

void take(uint32_t count)
{
    while (count-- && shadow.n_segments < MOST_SEGMENTS - MOST_VECTOR &&
           shadow.n_requests < MOST_REQUESTS - 1 && shadow.n_covers < MOST_COVERS - MOST_SENDS) {
        struct request *req = take_request();
        if (!req)
            break;
        /* Without an io_uring the result is there before the next request. */
        if (numbered)
            result(req);
    }
}
