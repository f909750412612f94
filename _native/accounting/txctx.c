/*
 * Contexts and generations: who owns which sends, and when a generation is released.
 *
 * A generation is open (sends join it), then flushed (none joins any more), then released (every
 * send of it is settled).  Generations of one context may be released in any order, because
 * notifications of different requests come in any order.  Each release is told exactly once.
 */
#include <errno.h>

#include "accounting.h"

zc_ctx *zc_ctx_new(zc_core *core, uint64_t id, uint64_t first_generation, size_t window,
                   int policy, size_t threshold)
{
    if (!core || window == 0 || policy < ZC_POLICY_AUTO || policy > ZC_POLICY_NEVER ||
        first_generation > (uint64_t)INT64_MAX >> ZC_SENT_SHIFT)
        return NULL;
    struct zc_ctx *ctx = zc_alloc(core, sizeof(*ctx));
    if (!ctx)
        return NULL;
    ctx->id = id;
    ctx->next_generation = first_generation;
    ctx->window = window;
    ctx->policy = policy;
    ctx->threshold = threshold;
    link_init(&ctx->window_event.link);
    link_init(&ctx->gens);
    link_append(&core->contexts, &ctx->link);
    core->stats.contexts++;
    return ctx;
}

/* Refused with EBUSY while a generation is not released, or its release was not told. */
int zc_ctx_free(zc_core *core, zc_ctx *ctx)
{
    if (!core || !ctx)
        return -EINVAL;
    if (!link_alone(&ctx->gens) || ctx->untold)
        return -EBUSY;
    link_remove(&ctx->window_event.link);
    link_remove(&ctx->link);
    core->stats.contexts--;
    zc_free(core, ctx);
    return 0;
}

/* The open generation of a context, made when there is none; NULL when memory is out. */
struct zc_gen *zc_gen_open(struct zc_core *core, struct zc_ctx *ctx)
{
    if (ctx->open)
        return ctx->open;
    struct zc_gen *gen = zc_alloc(core, sizeof(*gen));
    if (!gen)
        return NULL;
    gen->ctx = ctx;
    gen->number = ctx->next_generation++;
    link_init(&gen->released_event.link);
    link_init(&gen->sends);
    link_append(&ctx->gens, &gen->link);
    ctx->open = gen;
    core->stats.generations_open++;
    ctx->stats.generations_open++;
    return gen;
}

/* Tells the release of a generation as soon as it is flushed and its last send is settled. */
void zc_gen_check(struct zc_core *core, struct zc_gen *gen)
{
    if (!gen->flushed || !link_alone(&gen->sends))
        return;
    link_remove(&gen->link);
    gen->ctx->untold++;
    core->stats.generations_open--;
    core->stats.generations_released++;
    gen->ctx->stats.generations_open--;
    gen->ctx->stats.generations_released++;
    zc_tell(core, &gen->released_event, ZC_EV_RELEASED);
}

void zc_gen_flush(struct zc_core *core, struct zc_gen *gen)
{
    gen->flushed = true;
    gen->ctx->open = NULL;
    zc_gen_check(core, gen);
}

/* Flushes a generation that has its share of the window, so that references are dropped early. */
void zc_gen_roll(struct zc_core *core, struct zc_ctx *ctx)
{
    struct zc_gen *gen = ctx->open;
    if (gen && !ctx->by_hand &&
        (gen->bytes >= ctx->window / WINDOW_SHARE || gen->total >= ROLL_SENDS))
        zc_gen_flush(core, gen);
}

/* The generations of this context end only when its user says so. */
int zc_ctx_by_hand(zc_ctx *ctx)
{
    if (!ctx)
        return -EINVAL;
    ctx->by_hand = true;
    return 0;
}

/* Held sends do not count in the window of this context: the kernel's own buffers bound them. */
int zc_ctx_until_taken(zc_ctx *ctx)
{
    if (!ctx)
        return -EINVAL;
    ctx->until_taken = true;
    return 0;
}

/* A time limit may ask for a reset of its held sends, even of those that nobody can change. */
int zc_ctx_may_reset(zc_ctx *ctx, int may_reset)
{
    if (!ctx)
        return -EINVAL;
    ctx->may_reset = may_reset;
    return 0;
}

/*
 * A send that can be handed over at once, since its socket has nothing queued, is copied below this
 * size: that costs less than a notification of its own.
 */
int zc_ctx_copy_alone(zc_ctx *ctx, size_t below)
{
    if (!ctx)
        return -EINVAL;
    ctx->alone = below;
    return 0;
}

/*
 * Ends the open generation and returns its number.  If none is open, an empty one is made and
 * released at once with `even_empty`; otherwise ENODATA.
 */
int64_t zc_ctx_flush(zc_core *core, zc_ctx *ctx, int even_empty)
{
    if (!core || !ctx)
        return -EINVAL;
    if (!ctx->open && !even_empty)
        return -ENODATA;
    struct zc_gen *gen = zc_gen_open(core, ctx);
    if (!gen)
        return -ENOMEM;
    int64_t number = (int64_t)gen->number;
    zc_gen_flush(core, gen);
    return number;
}

/* How many sends of a context are not settled. */
int64_t zc_ctx_unreleased(const zc_ctx *ctx, int only_mutable)
{
    if (!ctx)
        return -EINVAL;
    int64_t count = 0;
    for (struct link *g = ctx->gens.next; g != &ctx->gens; g = g->next) {
        struct link *sends = &container(g, struct zc_gen, link)->sends;
        for (struct link *s = sends->next; s != sends; s = s->next)
            if (!only_mutable || (container(s, struct zc_send, gen_link)->flags & ZC_SEND_MUTABLE))
                count++;
    }
    return count;
}

int zc_ctx_get_stats(const zc_ctx *ctx, struct zc_ctx_stats *out)
{
    if (!ctx || !out)
        return -EINVAL;
    *out = ctx->stats;
    out->unreleased_bytes = ctx->unreleased;
    return 0;
}

/* How many generations were begun, which is the number that the next one will have. */
uint64_t zc_ctx_generations(const zc_ctx *ctx)
{
    return ctx ? ctx->next_generation : 0;
}

/* The ticket in the result event of the send that was queued last. */
uint64_t zc_ctx_ticket(const zc_ctx *ctx)
{
    return ctx ? ctx->stats.sends : 0;
}
