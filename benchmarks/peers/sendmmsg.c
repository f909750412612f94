/*
 * The plainest program that sends many datagrams with one system call: sendmmsg, in batches.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stddef.h>
#include <sys/socket.h>

#define BATCH 64

/* Sends `count` times on a blocking, connected socket; returns 0, or -errno. */
long send_many(int fd, const char *data, size_t size, long count)
{
    struct iovec part = {.iov_base = (void *)data, .iov_len = size};
    struct mmsghdr messages[BATCH];

    for (int i = 0; i < BATCH; i++)
        messages[i] = (struct mmsghdr){.msg_hdr = {.msg_iov = &part, .msg_iovlen = 1}};
    while (count) {
        int sent = sendmmsg(fd, messages, count < BATCH ? (unsigned)count : BATCH, 0);
        if (sent < 0)
            return -errno;
        count -= sent;
    }
    return 0;
}
