/*
 * Registered memory, which the kernel has pinned and mapped once, instead of at each send.
 *
 * A part of a send is registered if it lies whole in one region.  Its address tells, not the sender:
 * the parts of one send may lie anywhere.
 */
#include <errno.h>

#include "accounting.h"

/* Enters a region under a free index, and returns the index. */
int zc_core_add_region(zc_core *core, const char *memory, size_t size)
{
    if (!core || !memory || size == 0 || size > REGION_MAX_BYTES)
        return -EINVAL;
    uint32_t index = 0;
    while (index < MAX_REGIONS && core->regions[index].size)
        index++;
    if (index == MAX_REGIONS)
        return -ENOBUFS;
    core->regions[index] = (struct zc_region){.memory = memory, .size = size};
    if (index >= core->regions_used)
        core->regions_used = index + 1;
    return (int)index;
}

/* Returns the index that the region had; sends queued from it are not registered any more. */
int zc_core_drop_region(zc_core *core, const char *memory)
{
    static const struct zc_region none;
    if (!core || !memory)
        return -EINVAL;
    for (uint32_t i = 0; i < core->regions_used; i++) {
        if (core->regions[i].memory != memory || !core->regions[i].size)
            continue;
        core->regions[i] = none;
        return (int)i;
    }
    return -ENOENT;
}

/* The index of the region that contains all of the memory, or NO_REGION. */
uint32_t zc_region_of(const struct zc_core *core, const struct iovec *iov)
{
    const char *start = iov->iov_base;
    for (uint32_t i = 0; i < core->regions_used; i++) {
        const struct zc_region *region = &core->regions[i];
        if (start >= region->memory && start < region->memory + region->size)
            return iov->iov_len <= (size_t)(region->memory + region->size - start) ? i : NO_REGION;
    }
    return NO_REGION;
}
