/*
 * Memory for buffers, which is to be registered with an io_uring.
 *
 * An io_uring keeps registered huge pages whole, and charges a part of one to a socket's send buffer
 * from the page's beginning: 64 KiB in its middle cost a megabyte.  It keeps them whole only where
 * all pages of a registration have the same size (io_uring/rsrc.c, io_check_coalesce_buffer).  So
 * one page of the ordinary size follows the huge ones, and is registered with them.  Where huge pages
 * were not asked for, the kernel is told to make none.
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../zc.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define HUGE_PAGE_FLAG (21 << 26) /* MAP_HUGE_2MB, which is not in every sys/mman.h */

static size_t whole_huge_pages(size_t size)
{
    return (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
}

static char *map_reserved(size_t size)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), used = whole_huge_pages(size) + page;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS;
    char *found = mmap(NULL, used + HUGE_PAGE, PROT_NONE, flags | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED)
        return NULL;
    char *memory = (char *)whole_huge_pages((size_t)(uintptr_t)found);
    char *last = memory + used - page, *end = found + used + HUGE_PAGE;
    flags |= MAP_FIXED;
    if (mmap(memory, used - page, PROT_READ | PROT_WRITE, flags | MAP_HUGETLB | HUGE_PAGE_FLAG, -1,
             0) == MAP_FAILED ||
        mmap(last, page, PROT_READ | PROT_WRITE, flags, -1, 0) == MAP_FAILED) {
        munmap(found, used + HUGE_PAGE);
        return NULL;
    }
    if (memory > found)
        munmap(found, (size_t)(memory - found));
    munmap(memory + used, (size_t)(end - memory) - used);
    return memory;
}

/* Maps memory with a kind of pages; NULL and errno on failure. */
char *zc_map(size_t size, int pages)
{
    if (pages == ZC_PAGES_RESERVED)
        return map_reserved(size);
    char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return NULL;
    /* A kernel without transparent huge pages answers EINVAL. */
    (void)madvise(memory, size,
                  pages == ZC_PAGES_TRANSPARENT ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    return memory;
}

/* The size of what zc_map has mapped, for registering and unmapping it. */
size_t zc_mapped_size(size_t size, int pages)
{
    return pages == ZC_PAGES_RESERVED ? whole_huge_pages(size) + (size_t)sysconf(_SC_PAGESIZE)
                                      : size;
}

void zc_unmap(char *memory, size_t size, int pages)
{
    munmap(memory, zc_mapped_size(size, pages));
}
