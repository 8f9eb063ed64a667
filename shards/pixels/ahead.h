/* Several walks over the data of one sequential scan, in step.

   A walk waits at each look for the one before, as a code begins where the last ends, and a processor has time for three
   more meanwhile. So the data is also walked from other places, which are only guessed. Such a walk finds wrong symbols
   at first, but Huffman codes fall into step by themselves, mostly within a hundred bytes. It leaves a trail: where each
   block begins that it found. From any place on the trail where an MCU really begins, the trail is the truth, since from
   there on the codes alone decide. Before that nothing of it is believed, and what no trail tells is walked singly.

   Sources: T. J. Ferguson and J. H. Rabinowitz, "Self-synchronizing Huffman codes" (1984); S. T. Klein and Y. Wiseman,
   "Parallel Huffman decoding with applications to JPEG files" (2003). */

#ifndef AHEAD_H
#define AHEAD_H

#include "bits.h"
#include "codes.h"

#define WALKERS 4
#define LEAST 2048             /* bytes of an interval that more than one walks */
#define BEYOND 256             /* bytes that a walker goes on in the data of the next, which is in step by then */
#define STRIDE (22 + 22 + 26 + 27) /* bits that a walker takes at once: two looks, a long symbol, a mean */
#define BLOCKS 10              /* of an MCU at most */

typedef struct Kind {
    const Table *dc, *ac;
    const struct Kind *next;   /* that of the block that follows */
} Kind;

typedef struct {
    size_t at;                 /* bits of the data */
    const Table *ac;
    unsigned k;                /* coefficients of the block so far, without its mean */
    const Kind *kind;
    uint32_t *trail;           /* where it goes on */
} Walker;

typedef struct {
    Kind kinds[BLOCKS];        /* of an MCU */
    size_t blocks;
    uint32_t *begin[WALKERS], *end[WALKERS]; /* of the trails; `end` says where the last block ended */
    int now, count;            /* the trail that we may be on; how many there are */
} Ahead;

/* Begin a block: note where, and pass over its mean. */
static ALWAYS void enter(Walker *w, const Kind *kind, const uint8_t *data) {
    w->kind = kind;
    w->ac = kind->ac;
    w->k = 0;
    *w->trail++ = (uint32_t)w->at;
    const unsigned mean = long_way(kind->dc, 0, bits_at(data, w->at));
    if (mean != NONE) w->at += (mean & 63) + (mean >> 6); /* else it is not in step, or nobody will get this far */
}

/* At most three looks at a block, or its end; where there is no such code, begin again with an MCU at the next bit. */
static ALWAYS void stride(Walker *w, const Ahead *a, const uint8_t *data, uint32_t *begin) {
    uint64_t window = bits_at(data, w->at);
    for (int look = 0; look < 3; look++) {
        unsigned e = w->ac->many[window >> (64 - LOOK)], to = w->k + (e >> 6);
        if (to >= FULL) {
            if (to & WRONG) {
                e = long_way(w->ac, 1, bits_at(data, w->at));
                to = w->k + (e >> 6);
            }
            w->at += to & WRONG ? 1 : e & 63;
            w->k = to;
            if (to & WRONG) w->trail = begin;
            if (to >= FULL) enter(w, to & WRONG ? a->kinds : w->kind->next, data);
            return;
        }
        window <<= e & 63;
        w->at += e & 63;
        w->k = to;
    }
}

/* Leave trails of `room` places each over an interval. */
static void walk_ahead(Ahead *a, const uint8_t *data, size_t length, uint32_t *trails, size_t room) {
    Walker walkers[WALKERS];
    size_t until[WALKERS], rounds = 1;
    a->now = 0;
    a->count = length < LEAST || length >> 28 ? 0 : WALKERS;
    if (!a->count) return;
    for (int i = 0; i < WALKERS; i++) {
        a->begin[i] = trails + (size_t)i * room;
        walkers[i] = (Walker){8 * (length * (size_t)i / WALKERS), NULL, 0, NULL, a->begin[i]};
        enter(&walkers[i], a->kinds, data);
        until[i] = i == WALKERS - 1 ? 8 * length : 8 * (length * (size_t)(i + 1) / WALKERS + BEYOND);
    }
    while (rounds) { /* as many as none can go too far in */
        rounds = room;
        for (int i = 0; i < WALKERS; i++) {
            const size_t data_left = walkers[i].at < until[i] ? (until[i] - walkers[i].at) / STRIDE : 0;
            const size_t room_left = room - (size_t)(walkers[i].trail - a->begin[i]);
            if (data_left < rounds) rounds = data_left;
            if (room_left < rounds) rounds = room_left;
        }
        Walker w0 = walkers[0], w1 = walkers[1], w2 = walkers[2], w3 = walkers[3]; /* in registers, unlike an array */
        for (size_t n = 0; n < rounds; n++) {
            stride(&w0, a, data, a->begin[0]);
            stride(&w1, a, data, a->begin[1]);
            stride(&w2, a, data, a->begin[2]);
            stride(&w3, a, data, a->begin[3]);
        }
        walkers[0] = w0, walkers[1] = w1, walkers[2] = w2, walkers[3] = w3;
    }
    for (int i = 0; i < WALKERS; i++) a->end[i] = walkers[i].trail - 1;
}

/* Where the blocks begin of an MCU that really begins at `at`, and where the last ends; NULL if no trail tells. For one
   MCU after the other. */
static ALWAYS const uint32_t *blocks_of(Ahead *a, size_t at) {
    for (; a->now < a->count; a->now++) {
        uint32_t *trail = a->begin[a->now], *end = a->end[a->now];
        while (end - trail >= (ptrdiff_t)a->blocks && *trail < at) trail += a->blocks;
        a->begin[a->now] = trail;
        if (end - trail >= (ptrdiff_t)a->blocks) return *trail == at ? trail : NULL;
    }
    return NULL;
}

#endif
