/* entropy.c and crop.c over a batch of pictures, to be built with -fsanitize=address,undefined.

   crop.c is linked twice, the second time under names that begin with `plain`, which keeps to libjpeg's own Huffman
   decoder: what the first takes, the second must take as well, with the same pixels.

   The batch on stdin: for each picture its length, the side of the crop, a view of nine numbers, all int32, and its bytes.
   Each body lies in memory of exactly its size, so that a byte read past its end is reported. Says how many of each the
   libraries took, and the longest time of one, seconds; a report ends the process, with the picture's number before it. */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

size_t entropy_context(void);
size_t entropy_scratch(size_t);
long entropy_plane(void *, const uint8_t *, size_t, uint8_t *, size_t, uint8_t *, size_t);
long entropy_progressive(const uint8_t *, size_t, uint8_t *, size_t, uint8_t *, size_t);
void crop_sizes(int, const uint8_t *const *, const size_t *, int32_t *);
void crop_views(int, const uint8_t *const *, const size_t *, const void *, int, uint8_t *, uint8_t *);
void plain_views(int, const uint8_t *const *, const size_t *, const void *, int, uint8_t *, uint8_t *);
int crop_shrink(const uint8_t *, size_t, int, int, int, uint8_t *);
int plain_shrink(const uint8_t *, size_t, int, int, int, uint8_t *);
int crop_fast(void);
const char *__asan_default_options(void) { return "detect_leaks=0:allocator_may_return_null=1"; }

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static long gray(void *context, const uint8_t *body, size_t length, const int32_t *size) {
    const size_t room = (size_t)((size[0] + 7) / 8) * (size_t)((size[1] + 7) / 8), scratch = entropy_scratch(length);
    uint8_t *plane = malloc(room + 1), *aside = calloc(1, scratch);
    long done = plane && aside ? entropy_plane(context, body, length, aside, scratch, plane, room) : 0;
    if (plane && aside && entropy_progressive(body, length, aside, scratch, plane, room) > 1) done++;
    free(plane);
    free(aside);
    return done != 0;
}

/* Free both pictures; returns whether ours was taken, which the other must be as well, with the same pixels. */
static int compared(int ours, int theirs, uint8_t *one, uint8_t *other, size_t room) {
    if (ours > theirs || (ours && memcmp(one, other, room))) {
        fprintf(stderr, "ERROR: not as libjpeg\n");
        abort();
    }
    free(one);
    free(other);
    return ours;
}

/* Whether crop.c takes the view; twice, as it makes no tables for a small picture that it sees for the first time. */
static int crop(const uint8_t *body, size_t length, const void *view, int side) {
    const size_t room = 3 * (size_t)side * (size_t)side;
    uint8_t ours = 0, theirs = 0, *one = malloc(room), *other = malloc(room);
    if (!one || !other) abort();
    crop_views(1, &body, &length, view, side, one, &ours);
    crop_views(1, &body, &length, view, side, one, &ours);
    plain_views(1, &body, &length, view, side, other, &theirs);
    return compared(ours, theirs, one, other, room);
}

/* Whether crop.c makes the picture smaller, to a short side of `side`. */
static int shrink(const uint8_t *body, size_t length, const int32_t *size, int side) {
    const int short_side = size[0] < size[1] ? size[0] : size[1];
    if (side >= short_side) return 0;
    const int part = short_side / side >= 8 ? 8 : short_side / side >= 4 ? 4 : short_side / side >= 2 ? 2 : 1;
    const int wide = (int)((int64_t)side * size[0] / short_side), high = (int)((int64_t)side * size[1] / short_side);
    const size_t room = 3 * (size_t)wide * (size_t)high;
    uint8_t *one = malloc(room), *other = malloc(room);
    if (!one || !other) abort();
    crop_shrink(body, length, part, wide, high, one);
    const int ours = crop_shrink(body, length, part, wide, high, one);
    const int theirs = plain_shrink(body, length, part, wide, high, other);
    return compared(ours, theirs, one, other, room);
}

int main(void) {
    if (!crop_fast()) return 4;
    void *context = calloc(1, entropy_context());
    long count = 0, planes = 0, headers = 0, crops = 0, shrunk = 0;
    double slowest = 0;
    int32_t head[11];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        const size_t length = (size_t)head[0];
        const int side = head[1];
        uint8_t *body = malloc(length);
        if (fread(body, 1, length, stdin) != length) return 3;
        fprintf(stderr, "%ld\n", count);
        const double began = now();
        const uint8_t *bodies[1] = {body};
        int32_t size[2];
        crop_sizes(1, bodies, &length, size);
        if (size[0] && (int64_t)size[0] * size[1] < 40000000) {
            headers++;
            planes += gray(context, body, length, size);
            crops += crop(body, length, head + 2, side);
            shrunk += shrink(body, length, size, side);
        }
        const int32_t wrong[2] = {64, 8}, most[2] = {512, 512}; /* no header of a progressive picture was read */
        planes += gray(context, body, length, wrong) + gray(context, body, length, most);
        free(body);
        if (now() - began > slowest) slowest = now() - began;
        count++;
    }
    printf("%ld %ld %ld %ld %ld %.3f\n", count, headers, planes, crops, shrunk, slowest);
    free(context);
    return 0;
}
