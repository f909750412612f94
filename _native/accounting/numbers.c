/*
 * The numbers of MSG_ZEROCOPY: the kernel counts the zero-copy sends of a socket, in 32 bits, and
 * notifies of ranges of these numbers.  It never tells which number a send was given, so this side
 * has to count along.
 *
 * Requests that have a number are found by it in a hash table of the core.  So the cost of a range
 * depends only on its length, not on the order of ranges or on how many requests are held.
 */
#include <errno.h>
#include <stdatomic.h>

#include "accounting.h"

/* The list of the requests with a number; consecutive numbers of one socket lie side by side. */
static struct zc_req **place(struct zc_core *core, const struct zc_sock *sock, uint32_t number)
{
    uint32_t spread = (uint32_t)sock->id * 2654435761u;
    return &core->numbered[(number + spread) % core->max_requests];
}

void zc_number(struct zc_core *core, struct zc_req *req, uint32_t number)
{
    zc_forget_number(core, req);
    struct zc_req **first = place(core, req->sock, number);
    req->number = number;
    req->has_number = true;
    req->same_place = *first;
    *first = req;
    req->sock->numbered++;
}

void zc_forget_number(struct zc_core *core, struct zc_req *req)
{
    if (!req->has_number)
        return;
    struct zc_req **at = place(core, req->sock, req->number);
    while (*at != req)
        at = &(*at)->same_place;
    *at = req->same_place;
    req->has_number = false;
    req->sock->numbered--;
}

/* Gives a request the number by which zc_notify_range will know it. */
int zc_request_number(zc_core *core, uint64_t user_data, uint32_t number)
{
    struct zc_req *req = core ? zc_find_request(core, user_data) : NULL;
    if (!req)
        return -ESTALE;
    zc_number(core, req, number);
    return 0;
}

/* The request that has this number on this socket, or NULL. */
struct zc_req *zc_find_number(struct zc_core *core, const struct zc_sock *sock, uint32_t number)
{
    struct zc_req *req = *place(core, sock, number);
    while (req && (req->sock != sock || req->number != number))
        req = req->same_place;
    return req;
}

/*
 * The number that the next send will be given is not known any more, so the socket is sent to by
 * copying from now on.  Requests that have a number keep it: they were counted while it was known.
 */
void zc_sock_lose_count(struct zc_sock *sock)
{
    sock->knows_next_number = false;
    sock->can_zero_copy = false;
}

/* Forks of this process, counted for all threads and rings. */
static _Atomic uint64_t forks;

/*
 * The process forks.  A child has the same sockets, and its sends on them are counted as well, so
 * both processes stop trusting what they know of the numbers.
 */
void zc_forked(void)
{
    atomic_fetch_add(&forks, 1);
}

uint64_t zc_forks(void)
{
    return atomic_load_explicit(&forks, memory_order_relaxed);
}
