/* Bits of entropy-coded data: taken 56 at a time from memory that no stuffed zeros are left in. */

#ifndef BITS_H
#define BITS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define OVERRUN 4096           /* one MCU is at most 10 blocks of 64 codes of 31 bits: 2,480 bytes */

#define ALWAYS inline __attribute__((always_inline)) /* a reader whose address is taken would not be in registers */

typedef struct {
    const uint8_t *at;
    uint64_t window;           /* the next bits, from the top */
    unsigned bits;             /* of the window that are real */
} Reader;

static inline uint64_t eight(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    x = __builtin_bswap64(x);
#endif
    return x;
}

/* At least 56 bits in the window (F. Giesen, "Reading bits in far too many ways", variant 4). */
static inline void fill(Reader *r) {
    r->window |= eight(r->at) >> r->bits;
    r->at += (63 - r->bits) >> 3;
    r->bits |= 56;
}

static inline void take(Reader *r, unsigned bits) {
    r->window <<= bits;
    r->bits -= bits;
}

/* A reader of data from a bit on. */
static inline Reader reader_at(const uint8_t *data, size_t at) {
    Reader r = {data + at / 8, 0, 0};
    fill(&r);
    take(&r, at % 8);
    return r;
}

/* At least 57 bits of data from a bit on. */
static inline uint64_t bits_at(const uint8_t *data, size_t at) { return eight(data + at / 8) << at % 8; }

/* How many bits were taken since `start`. */
static inline ptrdiff_t taken(const Reader *r, const uint8_t *start) { return 8 * (r->at - start) - (ptrdiff_t)r->bits; }

/* The data up to the next marker without its stuffed zeros, to scratch; moves `at` to the marker. */
static inline size_t unstuff(const uint8_t *body, size_t size, size_t *at, uint8_t *scratch) {
    size_t length = 0;
    for (;;) {
        const uint8_t *from = body + *at, *mark = memchr(from, 0xFF, size - *at);
        size_t run = mark ? (size_t)(mark - from) : size - *at;
        memcpy(scratch + length, from, run);
        length += run;
        *at += run;
        if (!mark || *at + 1 >= size || body[*at + 1] != 0) return length;
        scratch[length++] = 0xFF;
        *at += 2;
    }
}

#endif
