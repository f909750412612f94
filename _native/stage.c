/*
 * Staging: memory of the ring's own that small sends are written into, so that their buffers are
 * free at once, and that many of them leave as one request.
 *
 * The memory is cut into slabs.  A staged run is an ordinary send whose buffer is a slab, and which
 * grows while it is the last of its socket's queue and its generation is open.  Slabs are handed out
 * in a row, so that the runs of a busy socket touch and go out as one piece.
 *
 * Nothing here makes a system call.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "internal.h"

/* Gives the core memory for staging, which stays the caller's to free after the core. */
int zc_core_stage(zc_core *core, char *memory, size_t size)
{
    if (!core || !memory || core->stage.memory || size < STAGE_SLAB)
        return -EINVAL;
    core->stage.taken = calloc(size / STAGE_SLAB, sizeof(bool));
    if (!core->stage.taken)
        return -ENOMEM;
    core->stage.memory = memory;
    core->stage.slabs = size / STAGE_SLAB;
    return 0;
}

/* A free slab, searched for from behind the last one given; NULL: none. */
static char *take_slab(struct zc_stage *stage)
{
    for (size_t tried = 0; tried < stage->slabs; tried++) {
        size_t slab = (stage->next + tried) % stage->slabs;
        if (!stage->taken[slab]) {
            stage->taken[slab] = true;
            stage->next = slab + 1;
            return stage->memory + slab * STAGE_SLAB;
        }
    }
    return NULL;
}

/* Gives back the slab that a run was written into. */
void zc_stage_give_back(struct zc_core *core, struct zc_send *run)
{
    core->stage.taken[(size_t)(run->slab - core->stage.memory) / STAGE_SLAB] = false;
    run->sock->slabs--;
}

/* The run at the end of a socket's queue, if more of this context's bytes can follow in it. */
static struct zc_send *last_run(const struct zc_ctx *ctx, const struct zc_sock *sock)
{
    if (link_alone(&sock->sends))
        return NULL;
    struct zc_send *last = container(sock->sends.prev, struct zc_send, sock_link);
    return last->slab && last->queue_ref && last->state == SEND_QUEUED && !last->cancelled &&
                   last->gen == ctx->open
               ? last
               : NULL;
}

/*
 * Writes a send into staging memory.  ENOSPC: no slab is free, or the socket has its share, so that
 * one stalled peer never starves another; the send then goes the other way.
 */
int64_t zc_stage_send(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                      const char *data, size_t size)
{
    struct zc_send *run = last_run(ctx, sock);
    size_t room = run ? (size_t)(run->slab + STAGE_SLAB - (char *)run->one.iov_base) -
                            run->one.iov_len
                      : 0;
    size_t first = size < room ? size : room;
    if (size - first > STAGE_SLAB)
        return -ENOSPC;
    if (size > first) {
        char *slab = sock->slabs < STAGE_SHARE ? take_slab(&core->stage) : NULL;
        if (!slab)
            return -ENOSPC;
        struct zc_send *rest = zc_send_new(core, ctx, sock, 1);
        if (!rest) {
            core->stage.taken[(size_t)(slab - core->stage.memory) / STAGE_SLAB] = false;
            return -ENOMEM;
        }
        sock->slabs++;
        rest->slab = slab;
        rest->one.iov_base = slab;
        if (first) {
            memcpy((char *)run->one.iov_base + run->one.iov_len, data, first);
            zc_send_grow(core, run, first, 0);
        }
        run = rest;
        zc_send_enqueue(core, run);
    }
    size_t part = size > first ? size - first : first;
    memcpy((char *)run->one.iov_base + run->one.iov_len, data + (size - part), part);
    zc_send_grow(core, run, part, 1);
    return zc_send_queued(core, run);
}
