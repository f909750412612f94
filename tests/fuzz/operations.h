/* The operations of an input, and what its bytes choose. */
#ifndef OPERATIONS_H
#define OPERATIONS_H

#include "shadow.h"

#define ONE_OF(...) \
    ((const int64_t[]){__VA_ARGS__}[next(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))])

/* input.c */
void begin_input(const uint8_t *data, size_t size);
void register_regions(uint32_t kind);
bool input_is_left(void);
uint32_t next(uint32_t below);
size_t some_size(void);
struct piece some_part(size_t size);
struct context *some_context(void);
struct socket *some_socket(void);
struct request *some_request(bool with_result);

/* operations.c */
extern bool numbered; /* the driver is one whose notifications have numbers */
void new_context(void);
void new_socket(void);
void send_parts(size_t count, bool many);
void refused(struct context *ctx, size_t size);
void check_refusal(struct context *ctx, struct socket *sock, int64_t answer, size_t size,
                   bool room, bool too_large, bool invalid, int64_t allocations);
int64_t budget(void);
void broadcast(void);
void flush(struct context *ctx, int even_empty);
void result(struct request *req);
void take(uint32_t count);

/* trains.c */
void send_segments(void);
void send_many(void);

#endif
