/*
 * Maps of files, which are sent from the page cache.
 *
 * Nothing here reads a map: past the end of a file that was truncated this would raise SIGBUS.  The
 * calls below answer EFAULT there, and so does a send.
 */
#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../zc.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22 /* Linux 5.14 */
#endif

#define PAGES_AT_ONCE 1024

/* Enlarges a range to whole pages; returns the new beginning. */
static char *whole_pages(char *memory, size_t *size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), before = (uintptr_t)memory % page;
    *size = (*size + before + page - 1) / page * page;
    return memory - before;
}

int zc_file_map(int fd, size_t size, char **out)
{
    char *memory = mmap(NULL, size, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED)
        return -errno;
    *out = memory;
    return 0;
}

void zc_file_unmap(char *memory, size_t size)
{
    munmap(memory, size);
}

/* Whether all of a range is in memory, as far as the kernel tells this process. */
int zc_file_is_resident(char *memory, size_t size)
{
    unsigned char found[PAGES_AT_ONCE];
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    memory = whole_pages(memory, &size);
    while (size > 0) {
        size_t part = size < PAGES_AT_ONCE * page ? size : PAGES_AT_ONCE * page;
        if (mincore(memory, part, found) != 0)
            return -errno;
        for (size_t at = 0; at < part / page; at++)
            if (!(found[at] & 1))
                return 0;
        memory += part;
        size -= part;
    }
    return 1;
}

/* Reads a range from the disk; before Linux 5.14 it only asks for that. */
int zc_file_populate(char *memory, size_t size)
{
    memory = whole_pages(memory, &size);
    if (madvise(memory, size, MADV_POPULATE_READ) == 0)
        return 0;
    if (errno != EINVAL)
        return -errno;
    return madvise(memory, size, MADV_WILLNEED) == 0 ? 0 : -errno;
}

/* Takes a range out of this process's page table: the kernel drops no page that is in one. */
int zc_file_leave(char *memory, size_t size)
{
    memory = whole_pages(memory, &size);
    return madvise(memory, size, MADV_DONTNEED) == 0 ? 0 : -errno;
}
