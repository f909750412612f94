/*
 * Requests: gathering what is queued.
 *
 * Two requests in flight on one TCP socket can reorder its bytes (one parks on poll while the next
 * gets through), so a stream has one request in flight; what is queued meanwhile is gathered into
 * the next.  Datagrams are one request each.
 */
#include <errno.h>

#include "accounting.h"

/* Whether one more request of a socket may be held, see SLOTS_SHARE. */
static bool may_hold(const struct zc_core *core, const struct zc_sock *sock)
{
    uint32_t share = core->max_requests / SLOTS_SHARE;
    return sock->open_requests < (share ? share : 1) &&
           core->open_requests < core->max_requests - share;
}

/*
 * Whether this many bytes would leave uncopied, as far as is known before trying.  For a train,
 * `datagram` is the size of one of its datagrams.
 */
bool zc_goes_zero_copy(const struct zc_core *core, const struct zc_ctx *ctx,
                       const struct zc_sock *sock, size_t size, size_t datagram, bool registered)
{
    if (!sock->can_zero_copy || datagram > sock->most_zero_copy || core->copy_left ||
        ctx->policy == ZC_POLICY_NEVER || !may_hold(core, sock))
        return false;
    if (ctx->policy == ZC_POLICY_ALWAYS)
        return true;
    size_t least = ctx->threshold;
    if (registered && least > REGISTERED_ZERO_COPY)
        least = REGISTERED_ZERO_COPY;
    return size >= least && !sock->copy_left;
}

static bool wants_zero_copy(const struct zc_core *core, const struct zc_send *send)
{
    size_t datagram = send->segment ? send->segment : send->size;
    return !send->force_copy && zc_goes_zero_copy(core, send->gen->ctx, send->sock, send->size,
                                                  datagram, send->region != NO_REGION);
}

static int take_slot(struct zc_core *core, struct zc_req *req)
{
    if (core->free_count)
        req->slot = core->free_slots[--core->free_count];
    else if (core->slots_used < core->max_requests)
        req->slot = core->slots_used++;
    else
        return -ENOBUFS;
    core->slots[req->slot] = req;
    return 0;
}

/* The counter of a slot moves on when it is given back, so a stray CQE matches no request. */
void zc_give_slot(struct zc_core *core, struct zc_req *req)
{
    core->slots[req->slot] = NULL;
    core->sequences[req->slot]++;
    core->free_slots[core->free_count++] = req->slot;
}

uint64_t zc_request_user_data(const struct zc_core *core, const struct zc_req *req)
{
    return (uint64_t)core->sequences[req->slot] << 32 | req->slot;
}

struct zc_req *zc_find_request(struct zc_core *core, uint64_t user_data)
{
    uint32_t slot = (uint32_t)user_data;
    if (slot >= core->slots_used || !core->slots[slot] ||
        core->sequences[slot] != (uint32_t)(user_data >> 32))
        return NULL;
    return core->slots[slot];
}

/* Whether both are one piece of the same registered or staging memory, and touch in this order. */
static bool touch(const struct zc_send *before, const struct zc_send *send)
{
    return before->region != NO_REGION && before->region == send->region &&
           (char *)before->iov[0].iov_base + before->iov[0].iov_len == send->iov[0].iov_base;
}

/*
 * Appends what is left of a send to a request, up to `most` bytes of it; false when the request has
 * no room left.  Runs whose slabs touch, and neighbours of a pool, go out as one piece.
 */
static bool gather(struct zc_req *req, const struct zc_send *send, uint32_t max_buffers, size_t most)
{
    bool touches = req->sends && touch(req->covered[req->sends - 1], send);
    size_t skip = send->offset;
    for (uint32_t i = send->at; i < send->buffers; i++, skip = 0) {
        size_t left = send->iov[i].iov_len - skip, size = within(left, 0, most);
        if (touches) /* it is one piece, and follows the last piece of the request */
            req->iov[req->buffers - 1].iov_len += size;
        else if (req->buffers < max_buffers)
            req->iov[req->buffers++] = (struct iovec){
                .iov_base = (char *)send->iov[i].iov_base + skip, .iov_len = size};
        else
            return false;
        req->bytes += size;
        most -= size;
        if (size < left || (!most && i + 1 < send->buffers))
            return false;
    }
    return true;
}

/*
 * Whether a send may go out in one request with the one before it.  A vector of registered buffers
 * would be pinned anew, so such buffers share a request only where they touch.
 */
static bool may_follow(const struct zc_send *before, const struct zc_send *send, bool zero_copy)
{
    return !zero_copy || (!before->registered && !send->registered) || touch(before, send);
}

/* Begins a turn: from here on requests are built until the turn has had its share. */
void zc_begin_turn(struct zc_core *core)
{
    core->turn_bytes = TURN_SUBMITS_BYTES;
    core->turn_requests = TURN_REQUESTS;
}

/* Whether the turn has had its share; nothing is built until the next begins. */
bool zc_turn_is_spent(const struct zc_core *core)
{
    return !core->turn_requests || !core->turn_bytes;
}

/*
 * Builds the next request of any socket, or returns NULL: nothing is ready, the turn has had its
 * share, or memory or slots are out (the socket then stays ready for the next turn).
 */
struct zc_req *zc_build_request(struct zc_core *core)
{
    if (link_alone(&core->ready) || zc_turn_is_spent(core)) {
        /* The rest gets a turn soon; what is queued until then need not ask for one. */
        core->waiting_bytes = core->waiting_sends = 0;
        return NULL;
    }
    struct zc_sock *sock = container(core->ready.next, struct zc_sock, ready_link);
    struct zc_send *send = sock->head;
    bool zero_copy = wants_zero_copy(core, send);
    size_t most = batch_bytes(send->gen->ctx, GATHER_BYTES,
                              send->region != NO_REGION ? GATHER_BYTES_MOST : core->most_pinned);
    size_t bytes = send->size - send->done;
    uint32_t buffers = send->buffers - send->at;
    if (sock->kind == ZC_STREAM)
        for (struct zc_send *before = send, *s = zc_sock_next_send(sock, send);
             s && bytes < most && s->size <= most && buffers < GATHER_BUFFERS &&
             may_follow(before, s, zero_copy) && wants_zero_copy(core, s) == zero_copy;
             before = s, s = zc_sock_next_send(sock, s)) {
            bytes += s->size;
            buffers += s->buffers;
        }
    if (buffers > GATHER_BUFFERS && sock->kind == ZC_STREAM)
        buffers = GATHER_BUFFERS;

    size_t each = sizeof(struct iovec) + sizeof(struct zc_send *);
    struct zc_req *req = zc_alloc(core, sizeof(*req) + buffers * each);
    if (!req)
        return NULL;
    if (take_slot(core, req) < 0) {
        zc_free(core, req);
        return NULL;
    }
    req->sock = sock;
    req->covered = (struct zc_send **)(req->iov + buffers); /* each has a buffer at least */
    req->zero_copy = zero_copy;
    link_init(&req->cancel_link);
    link_append(&core->requests, &req->link);
    link_append(&sock->requests, &req->sock_link);
    for (bool whole = true; whole && send; send = zc_sock_next_send(sock, send)) {
        if (req->sends && (sock->kind == ZC_DATAGRAM || req->bytes >= most || send->size > most ||
                           !may_follow(req->covered[req->sends - 1], send, zero_copy) ||
                           req->sends == buffers || wants_zero_copy(core, send) != zero_copy))
            break;
        size_t before = req->bytes;
        /* A stream's large send leaves in pieces, since a request is pinned as a whole. */
        whole = gather(req, send, buffers,
                       sock->kind == ZC_STREAM && !req->sends ? most : SIZE_MAX);
        if (req->sends && req->bytes == before)
            break; /* nothing of it fits, so this request does not cover it */
        send->refs++;
        zc_send_set_state(core, send, SEND_IN_FLIGHT);
        req->covered[req->sends++] = send;
    }
    req->msg.msg_iov = req->iov;
    req->msg.msg_iovlen = req->buffers;
    if (req->covered[0]->to) {
        req->msg.msg_name = req->covered[0]->to;
        req->msg.msg_namelen = req->covered[0]->to_size;
    }
    if (req->covered[0]->segment)
        zc_mark_train(&req->msg, req->control, sizeof(req->control), req->covered[0]->segment);
    core->stats.requests++;
    core->turn_requests--;
    core->turn_bytes -= within(req->bytes, 0, core->turn_bytes);
    if (!zero_copy)
        zc_sock_count_copy(core, sock);
    sock->in_flight++;
    sock->open_requests++;
    core->open_requests++;
    if (sock->kind == ZC_DATAGRAM)
        sock->head = send;
    link_remove(&sock->ready_link);
    /* It goes behind the others, which get their turn even if this socket has much to send. */
    if (sock->kind == ZC_DATAGRAM)
        zc_sock_make_ready(core, sock);
    return req;
}

/*
 * Sets how many bytes may be pinned at a time.  A request counts whole from its beginning to its
 * notification, so each must be a small part of that.
 */
int zc_core_lockable(zc_core *core, size_t bytes)
{
    if (!core)
        return -EINVAL;
    core->most_pinned = within(bytes / LOCKABLE_SHARE, GATHER_BYTES, GATHER_BYTES_MOST);
    return 0;
}

int zc_next_request(zc_core *core, struct zc_request_view *out)
{
    if (!core || !out)
        return -EINVAL;
    struct zc_req *req = zc_build_request(core);
    if (!req)
        return 0;
    out->user_data = zc_request_user_data(core, req);
    out->socket = req->sock->id;
    out->bytes = req->bytes;
    out->buffers = req->buffers;
    out->sends = req->sends;
    out->zero_copy = req->zero_copy;
    out->segment = req->covered[0]->segment;
    return 1;
}

/* For tests: where the bytes of a request are; returns how many buffers it has. */
int zc_request_vector(zc_core *core, uint64_t user_data, uint64_t *addresses, uint64_t *sizes,
                      int max_buffers)
{
    if (!core || !addresses || !sizes)
        return -EINVAL;
    struct zc_req *req = zc_find_request(core, user_data);
    if (!req)
        return -ESTALE;
    for (uint32_t i = 0; i < req->buffers && (int)i < max_buffers; i++) {
        addresses[i] = (uint64_t)(uintptr_t)req->iov[i].iov_base;
        sizes[i] = req->iov[i].iov_len;
    }
    return (int)req->buffers;
}

int zc_next_cancel(zc_core *core, uint64_t *user_data)
{
    if (!core || !user_data)
        return -EINVAL;
    if (link_alone(&core->cancels))
        return 0;
    struct zc_req *req = container(core->cancels.next, struct zc_req, cancel_link);
    link_remove(&req->cancel_link);
    *user_data = zc_request_user_data(core, req);
    return 1;
}

int zc_next_broken(zc_core *core, int *fd, int *reset)
{
    if (!core || !fd || !reset)
        return -EINVAL;
    if (link_alone(&core->broken))
        return 0;
    struct zc_sock *sock = container(core->broken.next, struct zc_sock, broken_link);
    link_remove(&sock->broken_link);
    *fd = sock->fd;
    *reset = sock->reset;
    /* Until now it could not be suspended. */
    zc_sock_check_idle(core, sock);
    return 1;
}
