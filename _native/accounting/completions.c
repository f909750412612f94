/*
 * What a completion means: short sends, failures, falling back to copies, the end of a request.
 *
 * A request ends with its result when the result says that no notification follows (no ZC_MORE),
 * else with its notification.  The flag decides, never the value: errors come with ZC_MORE too.
 * Notifications of different requests come in any order.
 */
#include <errno.h>

#include "accounting.h"

/* The last CQE of a request has come: it no longer refers to the sends that it covered. */
static void request_ends(struct zc_core *core, struct zc_req *req)
{
    link_remove(&req->link);
    link_remove(&req->sock_link);
    link_remove(&req->cancel_link);
    zc_forget_number(core, req);
    zc_give_slot(core, req);
    core->open_requests--;
    req->sock->open_requests--;
    for (uint32_t i = 0; i < req->sends; i++) {
        if (req->copied && i < req->touched)
            req->covered[i]->copied = true;
        zc_send_unref(core, req->covered[i]);
    }
    zc_free(core, req);
}

/*
 * A peer on this machine, or a device that cannot gather, makes the kernel copy every zero-copy
 * request, which costs more than copying at once.  After some of them in a row the socket is sent to
 * by copying for a while, and then probed again.
 */
static void learn(struct zc_sock *sock, bool copied)
{
    if (!copied) {
        sock->copied_in_a_row = sock->copy_next = 0;
        return;
    }
    if (sock->copy_left || ++sock->copied_in_a_row < COPIED_IN_A_ROW)
        return;
    sock->copied_in_a_row = COPIED_IN_A_ROW - 1;
    sock->copy_next = sock->copy_next ? sock->copy_next * 2 : COPY_REQUESTS;
    if (sock->copy_next > COPY_REQUESTS_MOST)
        sock->copy_next = COPY_REQUESTS_MOST;
    sock->copy_left = sock->copy_next;
}

static bool is_retry(int error)
{
    return error == EAGAIN || error == EINTR || error == ECANCELED;
}

/* After ENOMEM or EOPNOTSUPP for a zero-copy request, the same bytes go out by the plain operation. */
static bool falls_back(struct zc_core *core, struct zc_req *req, int error)
{
    if (!req->zero_copy || (error != ENOMEM && error != ENOBUFS && error != EOPNOTSUPP))
        return false;
    if (error == EOPNOTSUPP) {
        req->sock->can_zero_copy = false;
    } else {
        core->copy_left = DENIED_REQUESTS;
        core->stats.refused++;
    }
    for (uint32_t i = 0; i < req->sends; i++)
        req->covered[i]->force_copy = true;
    return true;
}

/* `taken` more bytes of a send were taken: moves on to the first that was not. */
static void advance(struct zc_send *send, size_t taken)
{
    send->done += taken;
    send->offset += taken;
    while (send->at < send->buffers && send->offset >= send->iov[send->at].iov_len)
        send->offset -= send->iov[send->at++].iov_len;
}

static void stream_result(struct zc_core *core, struct zc_req *req, int32_t result)
{
    struct zc_sock *sock = req->sock;
    size_t taken = result > 0 ? (size_t)result : 0;
    int error = result < 0 ? -result : result == 0 ? EIO : 0;

    if (taken > req->bytes)
        taken = req->bytes;
    core->stats.bytes_sent += taken;
    /* Sends stay on the socket's list here: this request still refers to each of them. */
    for (uint32_t i = 0; i < req->sends; i++) {
        struct zc_send *send = req->covered[i];
        size_t left = send->size - send->done;
        size_t part = taken < left ? taken : left;
        taken -= part;
        advance(send, part);
        req->touched += part > 0;
        send->gen->ctx->stats.bytes_sent += part;
        if (!req->zero_copy && part)
            send->copied = true;
        if (send->done == send->size) {
            sock->head = zc_sock_next_send(sock, send);
            zc_send_leave_queue(core, send);
        } else {
            zc_send_set_state(core, send, SEND_QUEUED);
        }
    }
    if (error && !is_retry(error) && !falls_back(core, req, error))
        zc_sock_break(core, sock, error, false);
    else if (sock->error)
        zc_sock_break(core, sock, sock->error, false);
    else if (sock->sweep)
        zc_sock_sweep(core, sock);
}

/* The datagrams of a train that is refused go out one by one. */
static bool is_cut(struct zc_core *core, struct zc_send *send, int error)
{
    return send->segment && zc_is_train_refused(error) && zc_cut_train(core, send) == 0;
}

static void datagram_result(struct zc_core *core, struct zc_req *req, int32_t result)
{
    struct zc_sock *sock = req->sock;
    struct zc_send *send = req->covered[0];
    int error = result < 0 ? -result : 0;

    if (error && !send->cancelled && !sock->error &&
        (is_retry(error) || falls_back(core, req, error) || is_cut(core, send, error))) {
        zc_send_set_state(core, send, SEND_QUEUED);
        zc_sock_put_back(sock, send);
        return;
    }
    if (error) {
        /* On a broken socket, report what broke it, and not the cancellation that followed. */
        zc_send_fail(core, send, sock->error && is_retry(error) ? sock->error : error);
        return;
    }
    core->stats.bytes_sent += send->size;
    send->gen->ctx->stats.bytes_sent += send->size;
    send->done = send->size;
    req->touched = 1;
    if (!req->zero_copy)
        send->copied = true;
    zc_send_leave_queue(core, send);
}

/*
 * Takes one CQE.  ESTALE: no request has this user_data; EPROTO: this request cannot have this CQE (a
 * second result, a second notification).  Both change only the counter of strays.
 */
int zc_complete(zc_core *core, uint64_t user_data, int32_t result, uint32_t flags)
{
    if (!core)
        return -EINVAL;
    struct zc_req *req = zc_find_request(core, user_data);
    if (!req || (flags & ZC_NOTIF ? req->notif_seen : req->result_seen)) {
        core->stats.strays++;
        return req ? -EPROTO : -ESTALE;
    }
    core->stats.completions++;
    if (flags & ZC_NOTIF) {
        req->notif_seen = true;
        req->copied = flags & ZC_COPIED;
        /* The report means nothing if the request failed. */
        if (req->touched)
            learn(req->sock, req->copied);
        /* Its memory is not pinned any more, so there is room for the next. */
        if (req->touched && !req->covered[0]->registered)
            core->copy_left = 0;
        if (req->result_seen)
            request_ends(core, req);
        return 0;
    }
    struct zc_sock *sock = req->sock;
    req->result_seen = true;
    link_remove(&req->cancel_link);
    sock->in_flight--;
    if (sock->kind == ZC_STREAM)
        stream_result(core, req, result);
    else
        datagram_result(core, req, result);
    if (!(flags & ZC_MORE) || req->notif_seen)
        request_ends(core, req);
    zc_sock_make_ready(core, sock);
    return 0;
}

/*
 * Takes notifications for the numbers from `low` to `high`, which wrap at 32 bits.  Some numbers may
 * have no request: their sends failed after they had been given a number.
 */
int zc_notify_range(zc_core *core, zc_sock *sock, uint32_t low, uint32_t high, int copied)
{
    if (!core || !sock)
        return -EINVAL;
    uint32_t flags = ZC_NOTIF | (copied ? ZC_COPIED : 0);
    if (high - low < sock->numbered) {
        for (uint32_t i = 0, count = high - low; i <= count; i++) {
            struct zc_req *req = zc_find_number(core, sock, low + i);
            if (req && req->result_seen)
                zc_complete(core, zc_request_user_data(core, req), 0, flags);
        }
        return 0;
    }
    for (struct link *l = sock->requests.next, *next = l->next; l != &sock->requests;
         l = next, next = l->next) {
        struct zc_req *req = container(l, struct zc_req, sock_link);
        if (req->has_number && req->result_seen && req->number - low <= high - low)
            zc_complete(core, zc_request_user_data(core, req), 0, flags);
    }
    return 0;
}
