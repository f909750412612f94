/* Checks the events of the accounting: each is told once, and not before it is true. */
#include <errno.h>

#include "shadow.h"

static void released(struct context *ctx, uint64_t number)
{
    struct generation *gen = find_generation(ctx, number);
    CHECK(gen && !gen->released, "generation %llu is released twice, or never was",
          (unsigned long long)number);
    CHECK(gen->flushed || !ctx->by_hand, "a generation was flushed that its user has open");
    for (int i = 0; i < shadow.n_sends; i++) {
        const struct sent *send = &shadow.sends[i];
        CHECK(send->gen != gen || settled(send),
              "released with %d requests of a send that is %s", send->covering,
              owed(send) ? "owed" : "held");
        CHECK(send->gen != gen || send->result_told ||
                  !(send->flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH)),
              "released before a result was told");
    }
    gen->flushed = gen->released = true;
}

static void failed(struct context *ctx, struct socket *sock, int error)
{
    bool found = false;
    CHECK(error > 0 && sock->handle, "a failure without a reason, or of no socket");
    for (int i = 0; i < sock->sends; i++) {
        struct sent *send = &shadow.sends[sock->order[i]];
        /* A reset also loses what the kernel has taken. */
        if (send->ctx != ctx || !(send->failed || sock->may_be_reset || send->staged))
            continue;
        found = send->failure_told = true;
    }
    CHECK(found, "nothing of that context has failed on that socket");
}

static void result(struct context *ctx, uint64_t ticket, int error)
{
    for (int i = 0; i < shadow.n_sends; i++) {
        struct sent *send = &shadow.sends[i];
        if (send->ctx != ctx || send->ticket != ticket)
            continue;
        CHECK(send->flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH), "a result that nobody asked for");
        CHECK(!send->result_told, "a result is told twice");
        CHECK(error ? send->failed || send->sock->error : send->done, "its result is %d", error);
        send->result_told = true;
        return;
    }
    CHECK(false, "a result of no send");
}

static void idle(const struct socket *sock)
{
    CHECK(sock->handle && !sock->suspended && !sock->requests, "a socket is said to be idle");
    for (int i = 0; i < sock->sends; i++)
        CHECK(!owed(&shadow.sends[sock->order[i]]), "a socket with a queue is said to be idle");
}

/* When no event is left, nothing may be due. */
static void check_all_told(void)
{
    for (int i = 0; i < shadow.n_contexts; i++)
        CHECK(!shadow.contexts[i].handle || !shadow.contexts[i].window_due ||
                  shadow.contexts[i].any_window,
              "nobody tells that a send fits");
    for (int g = 0; g < shadow.n_generations; g++) {
        const struct generation *gen = &shadow.generations[g];
        bool due = gen->flushed && !gen->released;
        for (int i = 0; due && i < shadow.n_sends; i++)
            due = shadow.sends[i].gen != gen ||
                  (settled(&shadow.sends[i]) && !shadow.sends[i].staged);
        CHECK(!due, "the release of generation %llu is not told",
              (unsigned long long)gen->number);
    }
}

void take_events(int most)
{
    int64_t events[16 * ZC_EVENT_FIELDS];
    int count = zc_events(shadow.core, events, most);
    CHECK(count >= 0 && count <= most, "events: %d", count);
    for (const int64_t *event = events; event < events + count * ZC_EVENT_FIELDS;
         event += ZC_EVENT_FIELDS) {
        TRACE("  event %lld: %lld %lld %lld\n", (long long)event[0], (long long)event[1],
              (long long)event[2], (long long)event[3]);
        struct context *ctx = &shadow.contexts[event[1] % MOST_CONTEXTS];
        switch (event[0]) {
        case ZC_EV_RELEASED:
            released(ctx, (uint64_t)event[2]);
            break;
        case ZC_EV_FAILED:
            failed(ctx, &shadow.sockets[event[2]], (int)event[3]);
            break;
        case ZC_EV_RESULT:
            result(ctx, (uint64_t)event[2], (int)event[3]);
            break;
        case ZC_EV_WINDOW:
            CHECK(ctx->window_due || ctx->any_window, "a window that nobody waits for");
            ctx->window_due = false;
            break;
        case ZC_EV_IDLE:
            idle(&shadow.sockets[event[1]]);
            break;
        default:
            CHECK(false, "event %lld", (long long)event[0]);
        }
    }
    if (count < most)
        check_all_told();
}

/* What the driver has to shut down or reset. */
void take_broken(void)
{
    int fd, reset;
    while (zc_next_broken(shadow.core, &fd, &reset) > 0) {
        struct socket *sock = &shadow.sockets[fd - FIRST_DESCRIPTOR];
        TRACE("  broken: socket %td, reset %d\n", sock - shadow.sockets, reset);
        CHECK(sock->handle && !sock->suspended && zc_sock_error(sock->handle),
              "a socket is broken that is whole, or gone");
        CHECK(reset || !sock->was_reset, "a reset becomes a shutdown");
        sock->was_reset |= reset;
        sock->owed = false;
    }
}

/* What the driver has to cancel; the kernel may answer as it likes. */
void take_cancels(void)
{
    uint64_t user_data;
    while (zc_next_cancel(shadow.core, &user_data) > 0) {
        bool found = false;
        for (int i = 0; i < shadow.n_requests; i++)
            found |= shadow.requests[i].user_data == user_data && !shadow.requests[i].result_seen;
        CHECK(found, "a request is cancelled that has its result");
    }
}
