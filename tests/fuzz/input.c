/* The choices that the bytes of an input make. */
#include <sys/mman.h>

#include "operations.h"

/* Sends lie in address space of which only the beginning is memory, since only staging reads it. */
#define CONTENT ((size_t)4 << 20)
#define SPACE ((size_t)16 << 30)
#define STAGEABLE ((size_t)256 << 10)

static const uint8_t *input, *input_end;
static char *content;
static const char *cursor; /* behind the part that was sent last: neighbours are frequent */

/* Begins with the bytes of an input. */
void begin_input(const uint8_t *data, size_t size)
{
    input = data;
    input_end = data + size;
    cursor = NULL;
    if (content)
        return;
    content = mmap(NULL, SPACE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(content != MAP_FAILED, "address space");
    CHECK(mprotect(content, CONTENT, PROT_READ | PROT_WRITE) == 0, "memory");
    uint64_t random = 1;
    for (size_t i = 0; i < CONTENT; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        content[i] = (char)(random >> 56);
    }
}

bool input_is_left(void)
{
    return input < input_end;
}

uint32_t next(uint32_t below)
{
    return input < input_end ? *input++ % below : 0;
}

size_t some_size(void)
{
    static const size_t larger[] = {
        100,     127,        128,           4096,       16383,       16384,        65535,
        65536,   65537,      100000,        131071,     131072,      300000,       1 << 20,
        4 << 20, (5 << 20) + 1, 1u << 30, (1u << 30) + 5, (size_t)3 << 30, SIZE_MAX >> 1, SIZE_MAX,
    };
    size_t count = sizeof(larger) / sizeof(*larger);
    uint32_t byte = next(256);
    return byte < 256 - count ? byte / 4 : larger[byte - (256 - count)];
}

struct piece some_part(size_t size)
{
    uint32_t byte = next(256);
    bool follows = cursor && byte % 4;
    struct piece part = {follows ? cursor : content + byte * 8191, size};
    if (part.at < content || part.at > content + CONTENT - STAGEABLE)
        part.at = content;
    cursor = size > STAGEABLE ? content : part.at + size;
    return part;
}

/* Memory that the kernel has registered: pieces that touch each other, and memory that is not. */
void register_regions(uint32_t kind)
{
    static const size_t begins[] = {0, 50, 8191, 16382, 100000}, ends[] = {50, 8191, 16382, 90000, 300000};
    for (size_t i = 0; kind && i < sizeof(begins) / sizeof(*begins); i++)
        if (kind == 1 || i % 2)
            CHECK(zc_core_add_region(shadow.core, content + begins[i], ends[i] - begins[i]) >= 0,
                  "a region");
}

/* The first context that exists, from the one that the input names on, or NULL. */
struct context *some_context(void)
{
    uint32_t from = next(MOST_CONTEXTS);
    for (int i = 0; i < shadow.n_contexts; i++) {
        struct context *ctx = &shadow.contexts[(from + (uint32_t)i) % (uint32_t)shadow.n_contexts];
        if (ctx->handle)
            return ctx;
    }
    return NULL;
}

struct socket *some_socket(void)
{
    uint32_t from = next(MOST_SOCKETS);
    for (int i = 0; i < shadow.n_sockets; i++) {
        struct socket *sock = &shadow.sockets[(from + (uint32_t)i) % (uint32_t)shadow.n_sockets];
        if (sock->handle)
            return sock;
    }
    return NULL;
}

/* A request that has not ended, and that has its result or waits for it. */
struct request *some_request(bool with_result)
{
    uint32_t skip = next(16);
    struct request *found = NULL;
    for (int i = 0; i < shadow.n_requests; i++) {
        struct request *req = &shadow.requests[i];
        if (req->ended || req->result_seen != with_result)
            continue;
        found = req;
        if (!skip--)
            break;
    }
    return found;
}

