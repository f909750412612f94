/*
 * Taking back and resetting the sends of a whole context, or of a whole ring.  It is above queue.c,
 * which deals with one socket at a time.
 */
#include <errno.h>

#include "accounting.h"

/* Puts each socket that has sends of a cancelled or timed-out context on `work` once. */
static void collect_sockets(struct zc_ctx *ctx, struct link *work, bool cancel, bool only_mutable)
{
    link_init(work);
    for (struct link *g = ctx->gens.next; g != &ctx->gens; g = g->next) {
        struct link *sends = &container(g, struct zc_gen, link)->sends;
        for (struct link *s = sends->next; s != sends; s = s->next) {
            struct zc_send *send = container(s, struct zc_send, gen_link);
            if (only_mutable && !(send->flags & ZC_SEND_MUTABLE))
                continue;
            if (cancel || send->sock->kind == ZC_DATAGRAM)
                send->cancelled = true;
            if (link_alone(&send->sock->work_link))
                link_append(work, &send->sock->work_link);
        }
    }
}

/*
 * Takes back what the kernel has not taken: queued sends are dropped, waiting requests are listed
 * for cancellation.  A stream whose send was cut short is broken.  Held sends stay held.
 */
int zc_ctx_cancel(zc_core *core, zc_ctx *ctx)
{
    if (!core || !ctx)
        return -EINVAL;
    struct link work;
    /* Two passes: dealing with one socket may retire sends and release generations of any context. */
    collect_sockets(ctx, &work, true, false);
    while (!link_alone(&work)) {
        struct zc_sock *sock = container(work.next, struct zc_sock, work_link);
        link_remove(&sock->work_link);
        zc_sock_sweep(core, sock);
    }
    return 0;
}

/*
 * Breaks every stream that a send of this context still refers to, and asks for its reset.  Nothing
 * makes a device give a datagram back early, so only datagrams that still wait are cancelled.
 */
int zc_ctx_reset(zc_core *core, zc_ctx *ctx, int error, int only_mutable)
{
    if (!core || !ctx || error <= 0)
        return -EINVAL;
    struct link work;
    int sockets = 0;
    collect_sockets(ctx, &work, false, only_mutable);
    while (!link_alone(&work)) {
        struct zc_sock *sock = container(work.next, struct zc_sock, work_link);
        link_remove(&sock->work_link);
        if (sock->kind == ZC_DATAGRAM)
            zc_sock_sweep(core, sock);
        else
            zc_sock_break(core, sock, error, true);
        sockets++;
    }
    return sockets;
}

/* At the end of the ring, resets every stream that any send refers to, staged ones included. */
int zc_core_reset(zc_core *core, int error)
{
    if (!core || error <= 0)
        return -EINVAL;
    for (struct link *l = core->sockets.next; l != &core->sockets; l = l->next) {
        struct zc_sock *sock = container(l, struct zc_sock, link);
        if (link_alone(&sock->sends))
            continue;
        if (sock->kind == ZC_STREAM) {
            zc_sock_break(core, sock, error, true);
            continue;
        }
        for (struct link *s = sock->sends.next; s != &sock->sends; s = s->next)
            container(s, struct zc_send, sock_link)->cancelled = true;
        zc_sock_sweep(core, sock);
    }
    return 0;
}
