/*
 * The queue of one socket: the order of its sends, breaking it, and taking sends out of it.
 */
#include <errno.h>

#include "accounting.h"

/* Appends a send, which has joined its generation, to its socket's queue. */
void zc_sock_append(struct zc_core *core, struct zc_send *send)
{
    struct zc_sock *sock = send->sock;
    link_append(&send->gen->sends, &send->gen_link);
    link_append(&sock->sends, &send->sock_link);
    link_remove(&sock->idle_event.link);
    link_remove(&sock->linger_link);
    sock->sent_to = true;
    send->order = ++sock->order;
    if (!sock->head)
        sock->head = send;
    zc_sock_make_ready(core, sock);
}

/*
 * A datagram that was in flight waits again where it stood: behind those that were queued before it
 * and have been put back too, and before all others.
 */
void zc_sock_put_back(struct zc_sock *sock, struct zc_send *send)
{
    struct zc_send *next = sock->head;
    while (next && next->order < send->order)
        next = zc_sock_next_send(sock, next);
    link_remove(&send->sock_link);
    link_append(next ? &next->sock_link : &sock->sends, &send->sock_link);
    if (!sock->head || next == sock->head)
        sock->head = send;
}

/* The next send that the queue refers to; cancelled sends that are held may stand in between. */
struct zc_send *zc_sock_next_send(const struct zc_sock *sock, struct zc_send *send)
{
    for (struct link *l = send->sock_link.next; l != &sock->sends; l = l->next)
        if (container(l, struct zc_send, sock_link)->queue_ref)
            return container(l, struct zc_send, sock_link);
    return NULL;
}

/*
 * Breaks a stream: nothing more of its queue leaves, and no later send is taken.  Nothing may follow
 * a hole in the bytes, so the driver also shuts the connection down for sending; or it resets the
 * connection, and then held bytes are lost too.
 */
void zc_sock_break(struct zc_core *core, struct zc_sock *sock, int error, bool reset)
{
    bool news = !sock->error || (reset && !sock->reset);
    sock->error = sock->error ? sock->error : error;
    sock->reset = sock->reset || reset;
    for (struct link *l = sock->sends.next; sock->reset && l != &sock->sends; l = l->next)
        if (container(l, struct zc_send, sock_link)->state == SEND_HELD)
            zc_send_note_failure(core, container(l, struct zc_send, sock_link), error);
    /* A suspended socket has no descriptor to shut down or reset. */
    if (news && !sock->suspended && link_alone(&sock->broken_link))
        link_append(&core->broken, &sock->broken_link);
    link_remove(&sock->ready_link);
    for (struct link *r = sock->requests.next; r != &sock->requests; r = r->next) {
        struct zc_req *req = container(r, struct zc_req, sock_link);
        if (!req->result_seen && link_alone(&req->cancel_link))
            link_append(&core->cancels, &req->cancel_link);
    }
    struct zc_send *send = sock->head;
    if (!link_alone(&sock->requests) && send && send->state == SEND_IN_FLIGHT)
        return; /* its result will come, and fail it and what follows */
    sock->head = NULL;
    for (struct zc_send *next; send; send = next) {
        next = zc_sock_next_send(sock, send);
        if (send->state == SEND_QUEUED)
            zc_send_fail(core, send, sock->error);
    }
}

int zc_sock_fail(zc_core *core, zc_sock *sock, int error)
{
    if (!core || !sock || error <= 0)
        return -EINVAL;
    zc_sock_break(core, sock, error, false);
    return 0;
}

/*
 * Deals with the cancelled sends of a socket that are queued or in flight.  A send of the program
 * that has begun must be completed, or its stream is broken.  This also holds if it is two units
 * here, of which the first has left or was handed over directly.
 */
void zc_sock_sweep(struct zc_core *core, struct zc_sock *sock)
{
    sock->sweep = false;
    for (struct link *r = sock->requests.next; r != &sock->requests; r = r->next) {
        struct zc_req *req = container(r, struct zc_req, sock_link);
        for (uint32_t i = 0; !req->result_seen && i < req->sends; i++)
            if (req->covered[i]->cancelled) {
                sock->sweep = true; /* look again when its result has come */
                if (link_alone(&req->cancel_link))
                    link_append(&core->cancels, &req->cancel_link);
            }
    }
    enum { GONE, STAYS, WAITS, DROPPED } before = GONE;
    for (struct zc_send *send = sock->head, *next; send; send = next) {
        next = zc_sock_next_send(sock, send);
        if (!send->cancelled || send->state != SEND_QUEUED) {
            before = send->state == SEND_IN_FLIGHT ? WAITS : STAYS;
            continue;
        }
        if (send->continues && before == WAITS)
            continue; /* the result of the unit that it continues decides */
        if (send->done || (send->continues && before != DROPPED)) {
            zc_sock_break(core, sock, ECANCELED, false);
            return;
        }
        if (sock->head == send)
            sock->head = next;
        zc_send_fail(core, send, ECANCELED);
        before = DROPPED;
    }
    if (!sock->head)
        link_remove(&sock->ready_link);
}

/* Resets the connection of a stream: queued sends are lost, held ones are released at once. */
int zc_sock_reset(zc_core *core, zc_sock *sock, int error)
{
    if (!core || !sock || error <= 0 || sock->kind != ZC_STREAM)
        return -EINVAL;
    zc_sock_break(core, sock, error, true);
    return 0;
}
