/* What has become of the program's sends, and what the counters must say about it. */
#include <errno.h>
#include <string.h>

#include "shadow.h"

struct shadow shadow;
bool trace;

/* Whether bytes of a send may still leave. */
bool owed(const struct sent *send)
{
    return !send->done && !send->failed;
}

/* Whether a send's buffer is released. */
bool settled(const struct sent *send)
{
    return !owed(send) && (send->staged || !send->covering);
}

/* The bytes that count in the window of a context that has never staged. */
size_t unreleased(const struct context *ctx)
{
    size_t bytes = 0;
    for (int i = 0; i < shadow.n_sends; i++) {
        const struct sent *send = &shadow.sends[i];
        if (send->ctx == ctx && (ctx->until_taken ? owed(send) : !settled(send)))
            bytes += send->weight;
    }
    return bytes;
}

static struct zc_ctx_stats ctx_stats(const struct context *ctx)
{
    struct zc_ctx_stats stats;
    CHECK(zc_ctx_get_stats(ctx->handle, &stats) == 0, "statistics of a context");
    return stats;
}

/* Whether the window admits a send; one larger than the window is admitted on its own. */
bool fits(const struct context *ctx, size_t size)
{
    size_t used = ctx_stats(ctx).unreleased_bytes;
    return !used || (size <= ctx->window && used <= ctx->window - size);
}

struct generation *find_generation(struct context *ctx, uint64_t number)
{
    for (int i = shadow.n_generations - 1; i >= 0; i--)
        if (shadow.generations[i].ctx == ctx && shadow.generations[i].number == number)
            return &shadow.generations[i];
    return NULL;
}

/* The youngest generation of a context, if it is not known to be flushed. */
struct generation *open_generation(struct context *ctx)
{
    struct generation *gen = NULL;
    if (ctx->generations)
        gen = find_generation(ctx, ctx->first + ctx->generations - 1);
    return gen && !gen->flushed ? gen : NULL;
}

/* The generation whose number a send or a flush has returned: the last one, or the next. */
static struct generation *joined(struct context *ctx, uint64_t number)
{
    struct generation *gen = open_generation(ctx);
    if (gen && gen->number == number)
        return gen;
    CHECK(number == ctx->first + ctx->generations, "generations are numbered one by one");
    if (gen)
        gen->flushed = true;
    gen = &shadow.generations[shadow.n_generations++];
    *gen = (struct generation){.ctx = ctx, .number = number};
    ctx->generations++;
    return gen;
}

/* Notes a send that the accounting has taken. */
struct sent *accept_send(struct context *ctx, struct socket *sock, const struct piece *parts,
                         size_t count, size_t size, size_t weight, uint32_t flags, int64_t answer)
{
    struct sent *send = &shadow.sends[shadow.n_sends];
    *send = (struct sent){.ctx = ctx,
                          .sock = sock,
                          .gen = joined(ctx, (uint64_t)answer >> ZC_SENT_SHIFT),
                          .parts = parts,
                          .count = count,
                          .size = size,
                          .weight = weight,
                          .flags = flags,
                          .ticket = ++ctx->sends,
                          .staged = answer & ZC_SENT_COPIED};
    sock->order[sock->sends++] = shadow.n_sends++;
    ctx->ever_staged |= send->staged;
    return send;
}

/*
 * Cancelled sends that were never begun are dropped, unless a request holds them now.  A cancelled
 * send that was begun breaks its stream.
 */
void settle_cancelled(struct socket *sock)
{
    bool cut = false;
    for (int i = 0; i < sock->sends; i++) {
        struct sent *send = &shadow.sends[sock->order[i]];
        if (!owed(send) || !send->cancelled || send->flying)
            continue;
        if (sock->kind == ZC_STREAM && send->taken)
            cut = true;
        else
            send->failed = true;
    }
    CHECK(!cut || zc_sock_error(sock->handle), "a send was cut short, and its stream is whole");
}

/* What cancelling or resetting a context means for its sends. */
void cancel_sends(struct context *ctx, bool reset, bool only_mutable)
{
    for (int i = 0; i < shadow.n_sends; i++) {
        struct sent *send = &shadow.sends[i];
        /* Of what was staged the accounting knows whole runs. */
        bool concerned = send->ctx == ctx && (send->staged || !settled(send)) &&
                         (!only_mutable || send->flags & ZC_SEND_MUTABLE);
        if (!concerned)
            continue;
        if (reset && send->sock->kind == ZC_STREAM) {
            send->sock->may_break = send->sock->may_be_reset = true;
            /* What was staged may be settled by now; what was not is, by this reset. */
            send->sock->owed |= !send->staged && !send->sock->was_reset;
            send->sock->was_reset |= !send->staged;
            CHECK(send->staged || zc_sock_error(send->sock->handle), "a reset stream is broken");
        } else {
            send->cancelled = true;
        }
    }
    for (int i = 0; i < shadow.n_sockets; i++)
        if (shadow.sockets[i].handle)
            settle_cancelled(&shadow.sockets[i]);
}

/* A socket may be broken on purpose, by its kernel, or by cancelling what had begun. */
static void check_socket(struct socket *sock)
{
    int error = zc_sock_error(sock->handle);
    CHECK(!sock->error || error, "a broken socket never becomes whole");
    if (error && !sock->error) {
        bool begun = sock->may_break;
        for (int i = 0; !begun && i < sock->sends; i++) {
            const struct sent *send = &shadow.sends[sock->order[i]];
            begun = send->cancelled && (send->staged || (send->taken && !send->done));
        }
        CHECK(begun, "a socket broke for no reason: %d", error);
        sock->owed = true;
    }
    sock->error = error;
    bool unsent = false;
    for (int i = 0; i < sock->sends; i++) {
        struct sent *send = &shadow.sends[sock->order[i]];
        /* A request that is on its way still decides what of it was taken. */
        if (error && owed(send) && !send->flying && (sock->kind == ZC_DATAGRAM || !sock->flying))
            send->failed = true;
        unsent |= owed(send);
    }
    unsent |= sock->flying > 0;
    CHECK(!!zc_sock_unsent(sock->handle) == unsent, "unsent: %d", unsent);
}

static void check_context(struct context *ctx)
{
    struct zc_ctx_stats stats = ctx_stats(ctx);
    CHECK(stats.bytes_sent == ctx->bytes_sent, "bytes of a context");
    CHECK(stats.sends == ctx->sends, "sends of a context");
    CHECK(zc_ctx_generations(ctx->handle) == ctx->first + ctx->generations, "generations");
    CHECK(zc_ctx_ticket(ctx->handle) == ctx->sends, "the latest ticket");
    if (ctx->wanted && fits(ctx, ctx->wanted)) {
        ctx->window_due = true;
        ctx->wanted = 0;
    }
    int64_t mutable = 0;
    uint64_t sends = 0;
    for (int i = 0; i < shadow.n_sends; i++) {
        const struct sent *send = &shadow.sends[i];
        if (send->ctx != ctx || settled(send))
            continue;
        sends++;
        mutable += !send->staged && send->flags & ZC_SEND_MUTABLE;
    }
    int64_t unreleased_mutable = zc_ctx_unreleased(ctx->handle, 1);
    /* A train is one there. */
    CHECK(ctx->ever_many ? !unreleased_mutable == !mutable && unreleased_mutable <= mutable
                         : unreleased_mutable == mutable,
          "%lld changeable buffers are out", (long long)mutable);
    if (ctx->ever_staged) {
        CHECK(stats.unreleased_sends >= sends && stats.unreleased_sends <= ctx->sends,
              "sends of runs are released together");
    } else {
        CHECK(stats.unreleased_sends == sends, "%llu sends are unreleased",
              (unsigned long long)sends);
        CHECK(stats.unreleased_bytes == unreleased(ctx), "the window holds %zu", unreleased(ctx));
    }
}

/* What holds at all times. */
void check_state(void)
{
    struct zc_stats stats;
    uint64_t bytes = 0, sends = 0, contexts = 0, sockets = 0;
    for (int i = 0; i < shadow.n_sockets; i++) {
        sockets += shadow.sockets[i].handle && !shadow.sockets[i].suspended;
        if (shadow.sockets[i].handle)
            check_socket(&shadow.sockets[i]);
    }
    for (int i = 0; i < shadow.n_contexts; i++) {
        struct context *ctx = &shadow.contexts[i];
        bytes += ctx->bytes_sent;
        sends += ctx->sends;
        contexts += ctx->handle != NULL;
        if (ctx->handle)
            check_context(ctx);
    }
    zc_core_stats(shadow.core, &stats);
    CHECK(stats.bytes_sent == bytes && stats.sends == sends, "the sums of all contexts");
    CHECK(stats.contexts == contexts && stats.sockets == sockets, "what is there");
    CHECK(stats.requests == (uint64_t)shadow.n_requests, "requests");
    CHECK(stats.completions == shadow.completions, "completions");
    CHECK(stats.strays == shadow.strays, "strays");
    uint64_t live = stats.queued + stats.in_flight + stats.held;
    CHECK(stats.queued <= sends && stats.in_flight <= sends && live <= sends, "states of sends");
    CHECK(live + stats.zero_copied + stats.copied + stats.staged + stats.failed >= sends,
          "every send is somewhere");
}

/* What holds at the end: nothing is left, and nothing was lost silently. */
void check_end(void)
{
    struct zc_stats stats;
    for (int i = 0; i < shadow.n_sends; i++) {
        const struct sent *send = &shadow.sends[i];
        CHECK(settled(send), "a send of %zu bytes is not settled", send->size);
        CHECK(!send->failed || send->cancelled || send->failure_told, "a send is lost in silence");
        CHECK(send->result_told || !(send->flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH)),
              "a result was not told");
    }
    for (int i = 0; i < shadow.n_generations; i++)
        CHECK(shadow.generations[i].released, "a generation is not released");
    zc_core_stats(shadow.core, &stats);
    CHECK(!stats.queued && !stats.in_flight && !stats.held, "something is under way");
    CHECK(!stats.generations_open, "a generation is open");
    CHECK(stats.generations_released == (uint64_t)shadow.n_generations, "released generations");
    CHECK(stats.sends == stats.zero_copied + stats.copied + stats.staged + stats.failed,
          "each send ended in one way");
}
