/* The kernel's part: requests hold what has to leave next, and completions report what became of it. */
#include <errno.h>
#include <string.h>

#include "shadow.h"

/* Compares a run of one part with what a request would read; returns how much of it is there. */
static size_t compare(const struct sent *send, const char *expected, size_t left,
                      const struct piece *segment, size_t skip)
{
    const char *at = segment->at + skip;
    size_t size = segment->size - skip < left ? segment->size - skip : left;
    bool staged = shadow.staging && at >= shadow.staging &&
                  at < shadow.staging + shadow.staging_size;
    CHECK(staged == send->staged, "read from staging memory: %d", staged);
    if (staged)
        CHECK(memcmp(at, expected, size) == 0, "staged bytes are what was sent");
    else
        CHECK(at == expected, "the bytes that have to leave next are %zd further on",
              expected - at);
    return size;
}

struct position {
    int segment;
    size_t skip; /* bytes of that segment */
};

/* Walks `bytes` bytes of a send from `from` on along the segments; returns how many are there. */
static size_t walk(const struct sent *send, size_t from, const struct request *req,
                   struct position *position)
{
    size_t walked = 0;
    for (size_t i = 0; i < send->count; i++) {
        const struct piece *part = &send->parts[i];
        size_t offset = from < part->size ? from : part->size;
        from -= offset;
        while (offset < part->size && position->segment < req->vector) {
            const struct piece *segment = &req->segments[position->segment];
            size_t size = compare(send, part->at + offset, part->size - offset, segment,
                                  position->skip);
            position->skip += size;
            offset += size;
            walked += size;
            if (position->skip == segment->size) {
                position->segment++;
                position->skip = 0;
            }
        }
        if (offset < part->size)
            break;
    }
    return walked;
}

static void cover(struct request *req, struct sent *send, size_t from, size_t bytes)
{
    req->covers[req->count++] = (struct cover){.send = send, .from = from, .bytes = bytes};
    shadow.n_covers++;
    send->covering++;
    send->flying = true;
}

/* A stream's request has exactly the next bytes in the order of the calls. */
static void match_stream(struct request *req)
{
    struct socket *sock = req->sock;
    struct position position = {0};
    CHECK(sock->flying == 0, "two requests of one stream are in flight");
    CHECK(req->bytes > 0, "a request without bytes");
    for (int i = 0; i < sock->sends && position.segment < req->vector; i++) {
        struct sent *send = &shadow.sends[sock->order[i]];
        if (!owed(send))
            continue;
        size_t walked = walk(send, send->taken, req, &position);
        if (walked)
            cover(req, send, send->taken, walked);
        if (send->taken + walked < send->size)
            break;
    }
    CHECK(position.segment == req->vector, "a request reads what nobody sent");
}

/* A request for datagrams has exactly one send, or a train of sends of one size. */
static void match_datagrams(struct request *req)
{
    struct socket *sock = req->sock;
    struct position position = {0};
    size_t left = req->bytes;
    CHECK(!req->segment || (sock->takes_trains && req->bytes <= 65507), "a train that cannot be");
    for (int i = 0; i < sock->sends && (left || !req->count); i++) {
        struct sent *send = &shadow.sends[sock->order[i]];
        if (!owed(send) || send->flying)
            continue;
        size_t size = req->segment && req->segment < left ? req->segment : left;
        CHECK(size == send->size, "a datagram of %zu bytes leaves with %zu", send->size, size);
        CHECK(walk(send, 0, req, &position) == size, "a datagram is not whole");
        cover(req, send, 0, size);
        CHECK(send->gen == req->covers[0].send->gen, "a train of two generations");
        left -= size;
    }
    CHECK(!left && req->count, "datagrams that nobody sent");
    CHECK(req->segment ? req->count > 1 && req->count <= 64 : req->count == 1, "%d datagrams",
          req->count);
}

/* Takes the next request, if there is one, and checks that it is the right one. */
struct request *take_request(void)
{
    static uint64_t addresses[MOST_VECTOR], sizes[MOST_VECTOR];
    struct zc_request_view view;
    int found = zc_next_request(shadow.core, &view);
    CHECK(found == 0 || found == 1, "next request: %d", found);
    if (!found)
        return NULL;
    struct request *req = &shadow.requests[shadow.n_requests++];
    struct socket *sock = &shadow.sockets[view.socket];
    *req = (struct request){.sock = sock,
                            .user_data = view.user_data,
                            .bytes = view.bytes,
                            .segment = view.segment,
                            .zero_copy = view.zero_copy,
                            .covers = &shadow.covers[shadow.n_covers],
                            .segments = &shadow.segments[shadow.n_segments]};
    CHECK(sock->handle && !sock->suspended && !sock->error, "a request of a socket that is gone");
    req->vector = zc_request_vector(shadow.core, view.user_data, addresses, sizes, MOST_VECTOR);
    CHECK(req->vector == (int)view.buffers && req->vector <= MOST_VECTOR, "buffers");
    uint64_t bytes = 0;
    for (int i = 0; i < req->vector; i++) {
        if (!sizes[i] && sock->kind == ZC_DATAGRAM)
            continue;
        CHECK(sizes[i], "a piece without bytes");
        bytes += sizes[i];
        shadow.segments[shadow.n_segments++] =
            (struct piece){.at = (const char *)(uintptr_t)addresses[i], .size = sizes[i]};
    }
    req->vector = (int)(&shadow.segments[shadow.n_segments] - req->segments);
    CHECK(bytes == view.bytes && bytes <= INT32_MAX, "bytes of a request");
    TRACE("  request %llx of socket %llu: %llu bytes, %d pieces, %u sends, zero copy %d\n",
          (unsigned long long)req->user_data, (unsigned long long)view.socket,
          (unsigned long long)req->bytes, req->vector, view.sends, view.zero_copy);
    if (sock->kind == ZC_STREAM)
        match_stream(req);
    else
        match_datagrams(req);
    for (int i = 0; i < req->count; i++)
        CHECK(!req->zero_copy || (sock->can_zero_copy &&
                                  req->covers[i].send->ctx->policy != ZC_POLICY_NEVER),
              "zero copy where it is not to be");
    sock->flying++;
    sock->requests++;
    shadow.live_requests++;
    return req;
}

/* Checks that staged bytes which the kernel may still read have not been overwritten. */
static void check_staged(const struct request *req)
{
    struct position position = {0};
    for (int i = 0; i < req->count; i++)
        walk(req->covers[i].send, req->covers[i].from, req, &position);
}

static bool is_retry(int error)
{
    return error == EAGAIN || error == EINTR || error == ECANCELED;
}

static bool is_denied(const struct request *req, int error)
{
    return req->zero_copy && (error == ENOMEM || error == ENOBUFS || error == EOPNOTSUPP);
}

static void took(struct sent *send, size_t bytes)
{
    send->taken += bytes;
    send->ctx->bytes_sent += bytes;
    send->done = send->taken == send->size;
    /* FLUSH: the generation ends when the send succeeds. */
    if (send->done && send->flags & ZC_SEND_FLUSH)
        send->gen->flushed = true;
}

static void stream_result(struct request *req, int32_t result)
{
    size_t taken = result > 0 ? (size_t)result : 0;
    for (int i = 0; i < req->count; i++) {
        struct cover *c = &req->covers[i];
        size_t part = taken < c->bytes ? taken : c->bytes;
        c->send->flying = false;
        took(c->send, part);
        taken -= part;
    }
}

/* A train that is refused leaves as its datagrams. */
static bool is_cut(const struct request *req, int error)
{
    return req->segment && (error == EMSGSIZE || error == EINVAL || error == EIO);
}

/*
 * The kernel reads nothing of a train that it refuses.  Its request, and those that had to be tried
 * again before, only keep the first datagram.
 */
static void give_up_train(const struct sent *first)
{
    for (int i = 0; i < shadow.n_requests; i++) {
        struct request *req = &shadow.requests[i];
        while (!req->ended && req->segment && req->count > 1 && req->covers[0].send == first)
            req->covers[--req->count].send->covering--;
    }
}

static void datagram_result(struct request *req, int error)
{
    for (int i = 0; i < req->count; i++) {
        struct sent *send = req->covers[i].send;
        send->flying = false;
        if (!error) {
            took(send, send->size);
            send->done = true; /* also one without bytes */
        } else if (send->cancelled || req->sock->error ||
                   !(is_retry(error) || is_denied(req, error) || is_cut(req, error))) {
            send->failed = true; /* what is tried again keeps its place in the order */
        }
    }
    if (is_cut(req, error) && !req->covers[0].send->failed)
        give_up_train(req->covers[0].send);
}

/* Notes what a completion means that the accounting has taken. */
static void noted(struct request *req, int32_t result, uint32_t flags)
{
    struct socket *sock = req->sock;
    bool notif = flags & ZC_NOTIF;
    int error = result < 0 ? -result : result == 0 && sock->kind == ZC_STREAM ? EIO : 0;
    shadow.completions++;
    if (notif) {
        req->notif_seen = true;
    } else {
        req->result_seen = true;
        sock->flying--;
        if (sock->kind == ZC_DATAGRAM) {
            datagram_result(req, error);
        } else {
            stream_result(req, result);
            if (error && !is_retry(error) && !is_denied(req, error)) {
                sock->may_break = true;
                CHECK(zc_sock_error(sock->handle), "error %d does not break its stream", error);
            }
        }
        /* Nothing is learned from what was given up. */
        if (error == EOPNOTSUPP && req->zero_copy &&
            (sock->kind == ZC_STREAM || !(sock->error || req->covers[0].send->cancelled)))
            sock->can_zero_copy = false;
    }
    if (req->result_seen && (req->notif_seen || (!notif && !(flags & ZC_MORE)))) {
        req->ended = true;
        sock->requests--;
        shadow.live_requests--;
        for (int i = 0; i < req->count; i++)
            req->covers[i].send->covering--;
    }
    settle_cancelled(sock);
}

/* Completes a request in one of the ways that a kernel might, or in one that none should. */
void complete(struct request *req, int32_t result, uint32_t flags)
{
    bool again = req->ended || (flags & ZC_NOTIF ? req->notif_seen : req->result_seen);
    TRACE("  complete %llx with %d, flags %x%s\n", (unsigned long long)req->user_data, result,
          flags, again ? ", again" : "");
    if (!req->ended)
        check_staged(req);
    int err = zc_complete(shadow.core, req->user_data, result, flags);
    CHECK(err == (req->ended ? -ESTALE : again ? -EPROTO : 0), "zc_complete: %d", err);
    if (again)
        shadow.strays++;
    else
        noted(req, result, flags);
}

/* Notifications by number, as MSG_ZEROCOPY gives them. */
void notify_range(struct socket *sock, uint32_t low, uint32_t high)
{
    TRACE("  notifications %x to %x of socket %td\n", low, high, sock - shadow.sockets);
    for (int i = 0; i < shadow.n_requests; i++)
        if (shadow.requests[i].sock == sock && !shadow.requests[i].ended)
            check_staged(&shadow.requests[i]);
    CHECK(zc_notify_range(shadow.core, sock->handle, low, high, 0) == 0, "notifications");
    for (int i = 0; i < shadow.n_requests; i++) {
        struct request *req = &shadow.requests[i];
        if (req->sock == sock && req->numbered && !req->ended && req->number - low <= high - low)
            noted(req, 0, ZC_NOTIF);
    }
}
