/* Symbols of a progressive scan, and scans that refine coefficients.

   A refinement has a symbol for each coefficient that it adds, and a bit for each that was not 0 before and is passed
   over on the way there; the masks of a block (64 bits, in zigzag order) say which those are. It waits at each symbol for
   the one before; two refinements in step do their waiting together.

   Source: ITU-T T.81 (G.1.2.3). */

#ifndef REFINE_H
#define REFINE_H

#include "bits.h"

#define SPARE 16               /* bytes; as of a baseline file (jpeg.py, _Gauge): some encoders leave a few unused */
#define PEEK 10                /* bits that one look at a table takes in */

typedef struct {
    uint32_t look[1 << PEEK];  /* 8 bits: the length of a code with the bits of its value, 0 if the code alone is longer
                                  than PEEK; 8 bits: the symbol; 16 bits: the one of its run's number */
    int32_t last[17], shift[17];
    uint8_t values[256];
    int known;
} Symbols;

static uint32_t symbol_entry(int length, int symbol) {
    return (uint32_t)(length + (symbol & 15)) | (uint32_t)symbol << 8 | 1u << (16 + (symbol >> 4));
}

/* A symbol with a code longer than PEEK, as an entry of `look`; 0 if no table has it. */
static __attribute__((noinline)) uint32_t long_symbol(const Symbols *t, uint64_t window) {
    for (int length = PEEK + 1; length <= 16; length++) {
        const int32_t code = (int32_t)(window >> (64 - length));
        if (code > t->last[length]) continue;
        return symbol_entry(length, t->values[(code + t->shift[length]) & 255]);
    }
    return 0;
}

/* The entry of the next symbol, and past the bits of its value, at most 31; 0 if no table has its code. */
static ALWAYS uint32_t progressive_symbol(Reader *r, const Symbols *t) {
    uint32_t e = t->look[r->window >> (64 - PEEK)];
    if (!e) e = long_symbol(t, r->window);
    take(r, e & 255);
    return e;
}

/* How many blocks after this one end where they begin, by a symbol of that. */
static ALWAYS unsigned long run_of(Reader *r, int run) {
    const unsigned long more = (unsigned long)(r->window >> 1 >> (63 - run));
    take(r, (unsigned)run);
    return (1ul << run) + more - 1;
}

/* Pass over a bit for each of a mask, where the window has `known` bits. */
static ALWAYS void pass_over(Reader *r, uint64_t mask, unsigned known) {
    unsigned bits = (unsigned)__builtin_popcountll(mask);
    if (bits > known) { /* 63 at most */
        take(r, known);
        fill(r);
        bits -= known;
    }
    take(r, bits);
}

/* The bit of x at the place, among its bits, that the one bit of `which` has; 0 if it has not so many. */
static ALWAYS uint64_t bit_of(uint64_t x, uint64_t which, int quick) {
#ifdef __x86_64__
    if (quick) {
        __asm__("pdep %1, %0, %0" : "+r"(which) : "r"(x));
        return which;
    }
#endif
    for (; which > 1 && x; which >>= 1) x &= x - 1;
    return x & (0 - x);
}

/* A block that is being refined. */
typedef struct {
    uint64_t before;           /* coefficients of the band that were not 0: each has a bit */
    uint64_t zeros, rest;      /* those that were 0, and all, that are still to come */
    uint64_t over;             /* those before that come after the last symbol */
    uint64_t added;
} Refined;

static ALWAYS Refined refine_begins(uint64_t mask, uint64_t band) {
    return (Refined){mask & band, ~mask & band, band, 0, 0};
}

/* Its next symbol; 0 if that is not sound. Nothing is left in `rest` after the last. */
static ALWAYS int refine_symbol(Reader *r, const Symbols *t, Refined *b, unsigned long *run, int quick) {
    fill(r);
    const uint32_t e = progressive_symbol(r, t);
    const unsigned symbol = e >> 8 & 255;
    if (!e || (symbol & 15) > 1) return 0;
    if (!(symbol & 15) && symbol < 240) {
        *run = run_of(r, (int)(symbol >> 4));
        b->over = b->before & b->rest;
        b->rest = 0;
        return 1;
    }
    const uint64_t at = bit_of(b->zeros, e >> 16, quick);
    if (!at) return 0;
    pass_over(r, b->before & b->rest & (at - 1), 56 - 17);
    b->added |= at & (0 - (uint64_t)(symbol & 1));
    b->rest &= ~(at ^ (at - 1));
    b->zeros &= ~(at ^ (at - 1));
    return 1;
}

/* Pass over what is left of it; returns the coefficients that it added. */
static ALWAYS uint64_t refine_ends(Reader *r, const Refined *b) {
    fill(r);
    pass_over(r, b->over, 56);
    return b->added;
}

/* A scan without restart markers on its way through the blocks of its part. */
typedef struct {
    Reader reader;
    const uint8_t *data;
    size_t length;             /* bytes of it */
    const Symbols *symbols;
    uint64_t band;
    uint64_t *mask;            /* of the block */
    size_t todo;               /* blocks, with that */
    size_t column, columns, beyond; /* of the block; of a row; masks that follow the row's */
    unsigned long run;         /* blocks that end where they begin */
    Refined block;
} Refinement;

/* One symbol of a block, or all of a block that has none; 0 if it is not sound. */
static ALWAYS int refinement_goes_on(Refinement *f, int quick) {
    if (!f->block.rest && !f->run) f->block = refine_begins(*f->mask, f->band);
    if (f->block.rest) {
        if (!refine_symbol(&f->reader, f->symbols, &f->block, &f->run, quick)) return 0;
        if (f->block.rest) return 1;
        *f->mask |= refine_ends(&f->reader, &f->block);
    } else {
        f->run--;
        fill(&f->reader);
        pass_over(&f->reader, *f->mask & f->band, 56);
    }
    const ptrdiff_t left = 8 * (ptrdiff_t)f->length - taken(&f->reader, f->data);
    f->mask++;
    f->todo--;
    if (++f->column == f->columns) f->column = 0, f->mask += f->beyond;
    return left >= 0 && (f->todo || (left < 8 * SPARE && !f->run)); /* else it ran out, or goes on */
}

/* Two refinements to their ends, the second always behind the first if they are of the same part; 0 if one is damaged.
   There may be nothing to do in one. */
static ALWAYS int refine_both(const Refinement *first, const Refinement *second, int same, int quick) {
    Refinement a = *first, b = *second;
    while (a.todo && b.todo) {
        if (!refinement_goes_on(&a, quick)) return 0;
        if ((!same || a.todo < b.todo) && !refinement_goes_on(&b, quick)) return 0;
    }
    while (a.todo)
        if (!refinement_goes_on(&a, quick)) return 0;
    while (b.todo)
        if (!refinement_goes_on(&b, quick)) return 0;
    return 1;
}

static int refine_plain(const Refinement *a, const Refinement *b, int same) { return refine_both(a, b, same, 0); }

#ifdef __x86_64__
/* The first Zens have `pdep`, but in microcode. */
static int is_quick(void) {
    return __builtin_cpu_supports("bmi2") && !__builtin_cpu_is("znver1") && !__builtin_cpu_is("znver2");
}

__attribute__((target("bmi,bmi2,popcnt"))) static int refine_quick(const Refinement *a, const Refinement *b, int same) {
    return refine_both(a, b, same, 1);
}
#endif

/* As refine_both. */
static int refine(const Refinement *a, const Refinement *b, int same) {
#ifdef __x86_64__
    if (is_quick()) return refine_quick(a, b, same);
#endif
    return refine_plain(a, b, same);
}

#endif
