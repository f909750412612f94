/*
 * The plainest program that sends with MSG_ZEROCOPY: a loop, which reads the error queue when a
 * number of notifications are due.  Python calls it once for all sends, so this is what C costs.
 */
#include <errno.h>
#include <time.h>

#include <linux/errqueue.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

#define OUTSTANDING_MOST 64
#define WAIT_MILLISECONDS 10000

/* Takes the notifications that are there; returns how many sends have ended, or -errno. */
static long take(int fd)
{
    long ended = 0;
    for (;;) {
        char control[512];
        struct msghdr message = {.msg_control = control, .msg_controllen = sizeof(control)};
        if (recvmsg(fd, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0)
            return errno == EAGAIN ? ended : -errno;
        for (struct cmsghdr *each = CMSG_FIRSTHDR(&message); each;
             each = CMSG_NXTHDR(&message, each)) {
            struct sock_extended_err error;
            memcpy(&error, CMSG_DATA(each), sizeof(error));
            if (error.ee_origin != SO_EE_ORIGIN_ZEROCOPY || error.ee_errno)
                return -EIO;
            ended += (uint32_t)(error.ee_data - error.ee_info) + 1;
        }
    }
}

/* Waits until fewer than `most` sends are held; returns how many are, or -errno. */
static long wait_until(int fd, long outstanding, long most)
{
    while (outstanding >= most && outstanding) {
        struct pollfd polled = {.fd = fd};
        int ready = poll(&polled, 1, WAIT_MILLISECONDS);
        if (ready <= 0)
            return ready ? -errno : -ETIMEDOUT;
        long ended = take(fd);
        if (ended < 0)
            return ended;
        outstanding -= ended;
    }
    return outstanding;
}

/* Sends `count` times on a blocking socket; returns 0 when all are free again, or -errno. */
long send_zero_copy(int fd, const char *data, size_t size, long count)
{
    int on = 1;
    long outstanding = 0;

    if (setsockopt(fd, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof(on)) < 0)
        return -errno;
    for (long number = 0; number < count; number++) {
        for (size_t done = 0; done < size;) {
            ssize_t sent = send(fd, data + done, size - done, MSG_ZEROCOPY);
            if (sent < 0 && (errno != ENOBUFS || !outstanding))
                return -errno;
            if (sent >= 0) {
                done += (size_t)sent;
                outstanding++;
            }
            outstanding = wait_until(fd, outstanding, sent < 0 ? outstanding : OUTSTANDING_MOST);
            if (outstanding < 0)
                return outstanding;
        }
    }
    return wait_until(fd, outstanding, 0);
}
