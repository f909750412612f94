/*
 * Trains: datagrams of one size that the kernel takes as one, and cuts (UDP_SEGMENT, Linux 4.18).
 *
 * A train is an ordinary send whose bytes are those of its datagrams, one behind the other; the last
 * of them may be shorter.  One that the kernel refuses is cut here, into as many sends, in its place
 * and its generation: so the caller need not know what the path, the device or the kernel can do.
 */
#include <errno.h>
#include <string.h>

#include "accounting.h"

/* Whether this is a socket of UDP, and the kernel knows trains. */
int zc_sock_take_trains(zc_sock *sock, int yes)
{
    if (!sock || (yes && sock->kind != ZC_DATAGRAM))
        return -EINVAL;
    sock->takes_trains = yes;
    return 0;
}

/* Where bytes are taken from next: so many of one of the parts are done with. */
struct cursor {
    size_t at, offset;
};

/* Lists the next `size` bytes of parts, and returns in how many pieces they lie. */
static size_t slice(const struct iovec *parts, struct cursor *next, size_t size,
                    const char **data, size_t *sizes)
{
    size_t pieces = 0;
    while (size) {
        const struct iovec *part = &parts[next->at];
        size_t piece = within(part->iov_len - next->offset, 0, size);
        if (piece) {
            data[pieces] = (const char *)part->iov_base + next->offset;
            sizes[pieces++] = piece;
        }
        size -= piece;
        next->offset += piece;
        if (next->offset == part->iov_len) {
            next->at++;
            next->offset = 0;
        }
    }
    return pieces;
}

/* How many bytes may leave at once in datagrams of a size; to be asked before each that is made. */
size_t zc_train_bytes(struct zc_sock *sock, size_t segment)
{
    if (!sock->takes_trains || segment > TRAIN_BYTES / 2)
        return segment;
    if (sock->cut_from && segment >= sock->cut_from) {
        if (sock->cut_left) {
            sock->cut_left--;
            return segment;
        }
        sock->cut_from = 0;
    }
    return segment * within(TRAIN_BYTES / segment, 1, TRAIN_SEGMENTS);
}

/*
 * Whether an errno refuses the train, and not what is sent: datagrams are larger than the path takes
 * whole (EMSGSIZE; EINVAL before Linux 6.14), the device or the socket makes no checksums (EIO,
 * EINVAL).  Where it is the datagrams after all, each of them is told so.
 */
bool zc_is_train_refused(int error)
{
    return error == EMSGSIZE || error == EINVAL || error == EIO;
}

/* The kernel has refused a train of such datagrams: for a while there are none of them. */
void zc_refuse_trains(struct zc_sock *sock, size_t segment)
{
    if (!sock->cut_from || segment < sock->cut_from)
        sock->cut_from = (uint32_t)segment;
    sock->cut_left = CUT_TRAINS;
}

/* Has a message cut into datagrams by the kernel (udp(7), Linux 4.18); `control` is for that. */
void zc_mark_train(struct msghdr *msg, void *control, size_t size, uint32_t segment)
{
    uint16_t bytes = (uint16_t)segment;
    memset(control, 0, size);
    msg->msg_control = control;
    msg->msg_controllen = size;
    struct cmsghdr *header = CMSG_FIRSTHDR(msg);
    header->cmsg_level = SOL_UDP;
    header->cmsg_type = UDP_SEGMENT;
    header->cmsg_len = CMSG_LEN(sizeof(bytes));
    memcpy(CMSG_DATA(header), &bytes, sizeof(bytes));
}

/* Forgets the bytes of a train, which are counted anew with its datagrams. */
static void uncount(struct zc_core *core, struct zc_send *train)
{
    struct zc_ctx *ctx = train->gen->ctx;
    zc_send_set_state(core, train, SEND_QUEUED);
    core->stats.sends -= train->count;
    core->stats.queued -= train->count;
    ctx->stats.sends -= train->count;
    ctx->stats.unreleased_sends -= train->count;
    ctx->unreleased -= train->weight;
    train->gen->bytes -= train->size;
    train->gen->total -= train->count;
    train->size = train->weight = 0;
    train->count = train->segment = 0;
}

static void drop(struct zc_core *core, struct link *pieces)
{
    while (!link_alone(pieces)) {
        struct zc_send *piece = container(pieces->next, struct zc_send, sock_link);
        link_remove(&piece->sock_link);
        zc_send_forget(core, piece);
    }
}

/* Datagram `index` of a train, on no list yet; NULL: no memory. */
static struct zc_send *new_piece(struct zc_core *core, const struct zc_send *train, size_t index,
                                 const char *const *data, const size_t *sizes, size_t count)
{
    struct zc_send *piece = zc_send_new(core, train->gen->ctx, train->gen, train->sock, count,
                                        train->to, train->to_size);
    if (!piece)
        return NULL;
    for (size_t i = 0; i < count; i++)
        piece->iov[i] = (struct iovec){.iov_base = (void *)(uintptr_t)data[i], .iov_len = sizes[i]};
    piece->flags = train->flags;
    piece->registered = train->registered;
    piece->force_copy = train->force_copy;
    piece->region = train->region;
    piece->order = train->order + index;
    return piece;
}

/*
 * Cuts a train into its datagrams, which wait where it stood.  The first of them is the train itself,
 * which a request refers to, and which the caller puts back.  ENOMEM: nothing has changed.
 */
int zc_cut_train(struct zc_core *core, struct zc_send *train)
{
    struct zc_sock *sock = train->sock;
    const char *data[UIO_MAXIOV];
    size_t sizes[UIO_MAXIOV], segment = train->segment, size = train->size;
    struct cursor next = {0};
    slice(train->iov, &next, segment, data, sizes);
    struct cursor second = next;
    struct link pieces;
    link_init(&pieces);
    for (size_t done = segment; done < size; done += segment) {
        size_t count = slice(train->iov, &next, within(size - done, 0, segment), data, sizes);
        struct zc_send *piece = new_piece(core, train, done / segment, data, sizes, count);
        if (!piece) {
            drop(core, &pieces);
            return -ENOMEM;
        }
        link_append(&pieces, &piece->sock_link);
    }
    zc_refuse_trains(sock, segment);
    uncount(core, train);
    zc_send_grow(core, train, segment, 1);
    train->buffers = (uint32_t)(second.at + (second.offset > 0));
    if (second.offset)
        train->iov[second.at].iov_len = second.offset;
    for (size_t left = size - segment; !link_alone(&pieces); left -= within(left, 0, segment)) {
        struct zc_send *piece = container(pieces.next, struct zc_send, sock_link);
        link_append(&train->gen->sends, &piece->gen_link);
        zc_send_grow(core, piece, within(left, 0, segment), 1);
        zc_sock_put_back(sock, piece);
    }
    return 0;
}

/* Queues one train, or one datagram where that is all. */
static int64_t queue_train(struct zc_core *core, struct zc_ctx *ctx, struct zc_sock *sock,
                           const char *const *data, const size_t *sizes, size_t count,
                           size_t total, size_t segment, uint32_t flags, const char *to,
                           size_t to_size)
{
    int64_t sent = zc_enqueue(core, ctx, sock, data, sizes, count, total, flags, to, to_size);
    if (sent < 0)
        return sent;
    if (total > segment) {
        struct zc_send *send = container(sock->sends.prev, struct zc_send, sock_link);
        uint32_t more = (uint32_t)((total - 1) / segment);
        send->segment = (uint32_t)segment;
        zc_send_grow(core, send, 0, more);
        sock->order += more; /* for its datagrams, if it is cut */
    }
    /* Counting in steps of a train would step over the sends that ask for a turn. */
    return sent | ZC_SENT_KICK;
}

/* A train may become many sends, so there is no one result to be told. */
static int check(const struct zc_core *core, const struct zc_ctx *ctx, const struct zc_sock *sock,
                 uint32_t flags, const char *to, size_t to_size)
{
    if (!core || !ctx || !sock || sock->kind != ZC_DATAGRAM ||
        (flags & (ZC_SEND_REPORT | ZC_SEND_FLUSH)) ||
        (to && to_size > sizeof(struct sockaddr_storage)))
        return -EINVAL;
    if (!zc_may_send(core))
        return -EPERM;
    if (sock->error)
        return -EPIPE;
    return sock->suspended ? -EBADF : 0;
}

/*
 * Queues `size` bytes of what lies in some buffers, from byte `from` on, as datagrams of `segment`
 * bytes each, the last one shorter, in as few trains as can be; all of it or nothing.
 */
int64_t zc_queue_segments(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                          const size_t *sizes, size_t count, size_t from, size_t size,
                          size_t segment, uint32_t flags, const char *to, size_t to_size)
{
    int err = check(core, ctx, sock, flags, to, to_size);
    if (err < 0)
        return err;
    if (!data || !sizes || !count || !segment)
        return -EINVAL;
    if (segment > UINT16_MAX || count > UIO_MAXIOV)
        return -EMSGSIZE;
    struct iovec parts[UIO_MAXIOV];
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        parts[i] = (struct iovec){.iov_base = (void *)(uintptr_t)data[i], .iov_len = sizes[i]};
        if (__builtin_add_overflow(total, sizes[i], &total) || total > SSIZE_MAX)
            return -EMSGSIZE;
    }
    if (!size || from > total || size > total - from)
        return -EINVAL;
    if (zc_window_full(ctx, size))
        return -EAGAIN;
    const char *pieces[UIO_MAXIOV];
    size_t piece_sizes[UIO_MAXIOV], most = zc_train_bytes(sock, segment);
    uint64_t before = sock->order;
    struct cursor next = {0};
    slice(parts, &next, from, pieces, piece_sizes);
    int64_t sent = 0;
    for (size_t left = size, train; left; left -= train) {
        train = within(left, 0, most);
        size_t used = slice(parts, &next, train, pieces, piece_sizes);
        int64_t one = queue_train(core, ctx, sock, pieces, piece_sizes, used, train, segment,
                                  flags, to, to_size);
        if (one < 0) {
            /* The caller keeps no buffer of what is refused. */
            for (struct link *l = sock->sends.prev; l != &sock->sends; l = l->prev) {
                struct zc_send *send = container(l, struct zc_send, sock_link);
                send->cancelled |= send->order > before;
            }
            zc_sock_sweep(core, sock);
            return one;
        }
        sent |= one;
    }
    zc_gen_roll(core, ctx);
    return sent;
}

/* How many of these datagrams make up the next train, and of how many bytes it is. */
size_t zc_next_train(struct zc_sock *sock, const size_t *sizes, size_t count, size_t *bytes)
{
    size_t size = sizes[0], total = size, used = 1;
    size_t most = size ? zc_train_bytes(sock, size) : 0;
    while (used < count && total + size <= most && total == used * size && sizes[used] &&
           sizes[used] <= size)
        total += sizes[used++];
    *bytes = total;
    return used;
}

/*
 * Queues buffers as a datagram each, neighbours of one size in trains; as many as the window takes,
 * which is `taken`.  What is refused says so if it is the first.
 */
int64_t zc_queue_many(zc_core *core, zc_ctx *ctx, zc_sock *sock, const char *const *data,
                      const size_t *sizes, size_t count, uint32_t flags, const char *to,
                      size_t to_size, size_t *taken)
{
    int err = check(core, ctx, sock, flags, to, to_size);
    if (err < 0)
        return err;
    if (!data || !sizes || !count || !taken)
        return -EINVAL;
    int64_t sent = 0, one = 0;
    for (*taken = 0; *taken < count;) {
        size_t at = *taken, size = sizes[at], total;
        size_t used = zc_next_train(sock, sizes + at, count - at, &total);
        if (size > UINT16_MAX)
            one = -EMSGSIZE;
        else if (zc_window_full(ctx, total))
            one = -EAGAIN;
        else
            one = queue_train(core, ctx, sock, data + at, sizes + at, used, total,
                              size ? size : 1, flags, to, to_size);
        if (one < 0)
            break;
        sent |= one;
        *taken += used;
    }
    if (*taken)
        zc_gen_roll(core, ctx);
    return *taken ? sent : one;
}
