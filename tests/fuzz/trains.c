/* Datagrams that leave in trains: many sends of the program that the accounting takes in one call. */
#include <errno.h>

#include "operations.h"

/* What a call for many datagrams has taken: so many, as sends that are told of together. */
static void accept_datagrams(struct context *ctx, struct socket *sock, const struct piece *parts,
                             const size_t *counts, size_t taken, uint32_t flags, int64_t answer)
{
    for (size_t i = 0; i < taken; parts += counts[i++]) {
        size_t size = 0;
        for (size_t part = 0; part < counts[i]; part++)
            size += parts[part].size;
        accept_send(ctx, sock, parts, counts[i], size, size, flags, answer);
    }
    ctx->ever_many = true;
}

/* What is refused for want of memory may have been begun: those sends are given up in silence. */
static void accept_given_up(struct context *ctx, struct socket *sock, const struct piece *parts,
                            const size_t *counts, size_t most)
{
    struct zc_ctx_stats stats;
    CHECK(zc_ctx_get_stats(ctx->handle, &stats) == 0, "statistics of a context");
    size_t begun = (size_t)(stats.sends - ctx->sends);
    CHECK(begun < most, "%zu of %zu sends were begun", begun, most);
    if (!begun)
        return;
    int first = shadow.n_sends;
    uint64_t generation = zc_ctx_generations(ctx->handle) - 1;
    accept_datagrams(ctx, sock, parts, counts, begun, 0, (int64_t)(generation << ZC_SENT_SHIFT));
    for (; first < shadow.n_sends; first++)
        shadow.sends[first].cancelled = shadow.sends[first].failed = true;
}

static uint32_t flags_of_many(void)
{
    return (uint32_t)ONE_OF(0, ZC_SEND_MUTABLE);
}

/* Cuts what lies in two buffers into datagrams, each of one part or two. */
static size_t cut(const struct piece *buffers, size_t from, size_t size, size_t segment,
                  struct piece *parts, size_t *counts)
{
    size_t count = 0;
    for (size_t done = 0; done < size; done += segment, count++) {
        size_t left = size - done < segment ? size - done : segment, at = from + done;
        counts[count] = 0;
        for (int i = 0; i < 2; at -= at < buffers[i].size ? at : buffers[i].size, i++) {
            size_t most = at < buffers[i].size ? buffers[i].size - at : 0;
            size_t part = left < most ? left : most;
            if (!part)
                continue;
            *parts++ = (struct piece){.at = buffers[i].at + at, .size = part};
            counts[count]++;
            at += part;
            left -= part;
        }
    }
    return count;
}

void send_segments(void)
{
    size_t counts[MOST_DATAGRAMS];
    struct context *ctx = some_context();
    struct socket *sock = some_socket();
    if (!ctx || !sock)
        return;
    uint32_t flags = flags_of_many(), datagrams = 1 + next(MOST_DATAGRAMS);
    size_t segment = (size_t)ONE_OF(100, 1, 7, 1400, 9000, 32753, 32754, 65507, 65535, 65536, 0);
    size_t from = next(50), size = segment ? segment * datagrams : 0;
    if (size)
        size -= next(100) % segment;
    struct piece buffers[2] = {some_part(from + size)};
    size_t first = (size_t)next(256) * 17;
    if (first < buffers[0].size) {
        buffers[1] = (struct piece){buffers[0].at + first, buffers[0].size - first};
        buffers[0].size = first;
    }
    const char *data[2] = {buffers[0].at, buffers[1].at ? buffers[1].at : buffers[0].at};
    size_t sizes[2] = {buffers[0].size, buffers[1].size};
    struct piece *parts = &shadow.parts[shadow.n_parts];
    size_t count = size ? cut(buffers, from, size, segment, parts, counts) : 0;
    bool room = fits(ctx, size);
    int64_t allocations = budget();
    int64_t answer =
        next(2) ? zc_queue_segments(shadow.core, ctx->handle, sock->handle, data, sizes, 2, from,
                                    size, segment, flags, "address", 8)
                : zc_queue_segments(shadow.core, ctx->handle, sock->handle, data, sizes, 2, from,
                                    size, segment, flags, NULL, 0);
    zc_core_alloc_budget(shadow.core, -1);
    TRACE("send %zu bytes in segments of %zu on socket %td by context %td, flags %x: %lld\n", size,
          segment, sock - shadow.sockets, ctx - shadow.contexts, flags, (long long)answer);
    shadow.n_parts += 2 * (int)count;
    if (answer >= 0) {
        CHECK(room && segment <= UINT16_MAX && sock->kind == ZC_DATAGRAM && !sock->error &&
                  !sock->suspended,
              "segments that cannot be");
        accept_datagrams(ctx, sock, parts, counts, count, flags, answer);
        return;
    }
    check_refusal(ctx, sock, answer, size, room, segment > UINT16_MAX,
                  sock->kind == ZC_STREAM || !size, allocations);
    if (answer == -ENOMEM)
        accept_given_up(ctx, sock, parts, counts, count);
}

void send_many(void)
{
    const char *data[MOST_DATAGRAMS];
    size_t sizes[MOST_DATAGRAMS], counts[MOST_DATAGRAMS], taken = 0;
    struct context *ctx = some_context();
    struct socket *sock = some_socket();
    if (!ctx || !sock)
        return;
    /* How much room the rest waits for is only known inside. */
    ctx->any_window = true;
    uint32_t flags = flags_of_many(), kinds = 1 + next(4);
    size_t count = 1 + next(MOST_DATAGRAMS), usual = some_size();
    struct piece *parts = &shadow.parts[shadow.n_parts];
    for (size_t i = 0; i < count; i++) {
        parts[i] = some_part(next(kinds) ? some_size() : usual);
        data[i] = parts[i].at;
        sizes[i] = parts[i].size;
        counts[i] = 1;
    }
    bool room = fits(ctx, sizes[0]);
    int64_t allocations = budget();
    int64_t answer =
        next(2) ? zc_queue_many(shadow.core, ctx->handle, sock->handle, data, sizes, count, flags,
                                "address", 8, &taken)
                : zc_queue_many(shadow.core, ctx->handle, sock->handle, data, sizes, count, flags,
                                NULL, 0, &taken);
    zc_core_alloc_budget(shadow.core, -1);
    TRACE("send %zu of %zu datagrams on socket %td by context %td, flags %x: %lld\n", taken, count,
          sock - shadow.sockets, ctx - shadow.contexts, flags, (long long)answer);
    shadow.n_parts += (int)count;
    if (answer < 0) {
        /* The first may leave with others, and they do not fit together. */
        check_refusal(ctx, sock, answer, sizes[0], room && count == 1, sizes[0] > UINT16_MAX,
                      sock->kind == ZC_STREAM || !sizes[0], allocations);
        return;
    }
    CHECK(room && taken > 0 && taken <= count && sock->kind == ZC_DATAGRAM && !sock->error &&
              !sock->suspended,
          "datagrams that cannot be");
    accept_datagrams(ctx, sock, parts, counts, taken, flags, answer);
}
