/* A Huffman decoder that libjpeg calls in place of its own: the same coefficients, at half the cost.

   For one sequential scan of 8 bits. It reads 64 bits at a time, looks up codes together with the bits that follow them,
   two coefficients at a look, and of blocks that nobody asked for it only finds the end. It accepts nothing that libjpeg
   would warn of; whatever is odd it refuses, and the reference decoder judges it: bad codes, coefficients beyond the
   64th or of more than 10 bits, restart markers out of order, data left over or missing.

   It enters through `decode_mcu`, the second pointer of libjpeg's private struct jpeg_entropy_decoder from release 6b to
   libjpeg-turbo 3.1; what a build of the library makes of that is tried before it is used (crop.c, crop_fast).

   Sources: ITU-T T.81 (F.1.2, F.2.2); libjpeg-turbo's jdhuff.c, jdcoefct.c and jdapistd.c for who calls it and when. */

#ifndef HUFFMAN_H
#define HUFFMAN_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "bits.h"

#define LOOK 10                /* bits that one look at a table takes in: the tables of a picture then take 20 KB */
#define WAYS (1 << LOOK)
#define END 128                /* in an advance: the block ends here */
#define NONE 255               /* as an advance: the code's bits go on beyond the look, or there is no such code */
#define LARGE 16384            /* bytes of a picture for which tables are made at once; for less, when seen twice */

/* What LOOK bits say: two coefficients at most, and where they lie after the one that is next. If the bits of the last go
   on beyond the look, `size` is how many it has, and `another` 0. Where there is only one, both are it; where there is
   none, it is a zero. The `length` of all of them is 0 if not even the first code ends within the look. */
typedef struct {
    uint8_t length, advance, place, other, size;
    int8_t value;
    int16_t another;
} Look;

typedef struct {
    Look look[WAYS];
    uint16_t many[WAYS];       /* as many symbols as LOOK bits hold codes of: 6 bits: their bits; above: their advance */
    int32_t last[17];          /* of the codes of each length: the largest code, -1 if there is none */
    int32_t shift[17];         /* index of a value minus its code */
    JHUFF_TBL from;
    int seen;                  /* 1: `from` is that of the picture before; 2: the rest is made of it */
} Codes;

typedef struct {
    Codes codes[2][NUM_HUFF_TBLS]; /* [0] of mean differences, [1] of coefficients */
} Tables;

/* The scan of one picture. */
typedef struct {
    const Codes *dc[D_MAX_BLOCKS_IN_MCU], *ac[D_MAX_BLOCKS_IN_MCU];
    int part[D_MAX_BLOCKS_IN_MCU], mean[MAX_COMPS_IN_SCAN];
    const uint8_t *body;
    size_t size, at, length;   /* of the body; its marker after the interval; bytes of the interval without stuffing */
    uint8_t *scratch;          /* of size + OVERRUN bytes */
    Reader reader;
    long todo, done, all;      /* MCUs: of the interval, and of the scan */
    int column, columns, from, to; /* the MCU in its row, how many there are, those that are asked for: [from, to) */
} Scan;

static const uint8_t ZIGZAG[64] = {
    0,  1,  8,  16, 9,  2,  3,  10, 17, 24, 32, 25, 18, 11, 4,  5,  12, 19, 26, 33, 40, 48, 41, 34, 27, 20, 13, 6,  7,  14, 21, 28,
    35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59, 52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
};

/* --- tables ----------------------------------------------------------------------------------------------------- */

/* The value that the top `size` bits stand for, 0 if that is 0 (T.81 F.2.2.1, EXTEND): without a branch, which could not
   be foretold. */
static ALWAYS int value_of(uint64_t bits, unsigned size) {
    const int negative = (int)~(bits >> 32) >> 31;
    return (int)(bits >> 1 >> (63 - size)) - (negative & ((1 << size) - 1));
}

/* The symbols of a way, as a look and as one of `many`. `one` has each first symbol: its code's length, and in `place` and
   `size` the run before its coefficient and how many bits that has. */
static Look look_of(const Look *one, unsigned way, uint16_t *many) {
    Look found = {0, NONE, 0, 0, 0, 0, 0};
    unsigned bits = 0, advance = 0, count = 0;
    *many = NONE << 6;
    while (advance < 64 && bits < LOOK) {
        const Look *next = &one[(way << bits) & (WAYS - 1)];
        const unsigned size = next->size, left = LOOK - bits;
        if (!next->length || next->length > left || size > 10) break;
        const unsigned beyond = next->length + size > left, to = advance + next->place + 1u;
        const int ends = !size && next->place < 15;
        if (!ends && to > 63) break;
        bits += next->length + size;
        advance = ends ? advance | END : to;
        *many = (uint16_t)(bits | advance << 6);
        if (size && count == 1 && (found.another > 127 || found.another < -128)) count = 2; /* no room for it */
        if (size && count < 2) {
            found.value = (int8_t)found.another;
            found.place = found.other;
            found.other = (uint8_t)(advance - 1);
            found.another = beyond ? 0 : (int16_t)value_of((uint64_t)way << (64 - LOOK + bits - size), size);
            if (!count) found.place = found.other;
        }
        count += size > 0;
        if (count > 2) continue;
        found.length = (uint8_t)bits;
        found.advance = (uint8_t)advance;
        found.size = beyond ? (uint8_t)size : 0;
        if (!count) found.place = found.other = (uint8_t)((advance & 127) - !ends);
    }
    return found;
}

static int make(Codes *c, int is_ac) {
    Look one[WAYS];
    memset(one, 0, sizeof one);
    int32_t code = 0, index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        c->shift[length] = index - code;
        for (int i = 0; i < c->from.bits[length]; i++, code++, index++) {
            if (index > 255 || code >= 1 << length) return 0;
            const uint8_t symbol = c->from.huffval[index], size = symbol & 15;
            if (!is_ac && symbol > 15) return 0;
            const Look e = {(uint8_t)length, NONE, symbol >> 4, 0, size, 0, 0};
            for (int j = 0; length <= LOOK && j < 1 << (LOOK - length); j++) one[(code << (LOOK - length)) + j] = e;
        }
        c->last[length] = c->from.bits[length] ? code - 1 : -1;
    }
    for (unsigned way = 0; way < WAYS; way++) c->look[way] = is_ac ? look_of(one, way, &c->many[way]) : one[way];
    return 1;
}

/* The table's codes; NULL if it is not worth making them for this picture. */
static const Codes *codes_of(Tables *t, int is_ac, int number, const JHUFF_TBL *from, size_t size) {
    if (number < 0 || number >= NUM_HUFF_TBLS || !from) return NULL;
    Codes *c = &t->codes[is_ac][number];
    const int same = c->seen && !memcmp(c->from.bits + 1, from->bits + 1, 16) &&
                     !memcmp(c->from.huffval, from->huffval, sizeof from->huffval);
    if (same && c->seen == 2) return c;
    c->from = *from;
    c->seen = 1;
    if (!same && size < LARGE) return NULL;
    if (!make(c, is_ac)) return c->seen = 0, NULL;
    c->seen = 2;
    return c;
}

/* --- blocks ----------------------------------------------------------------------------------------------------- */

/* The next symbol, whatever the length of its code, as `make` has them in `one`; its length is 0 if no table has it. */
static __attribute__((noinline)) Look symbol_of(const Codes *c, uint64_t window) {
    for (int length = 1; length <= 16; length++) {
        const int32_t code = (int32_t)(window >> (64 - length));
        if (code > c->last[length]) continue;
        const uint8_t symbol = c->from.huffval[(code + c->shift[length]) & 255];
        return (Look){(uint8_t)length, NONE, symbol >> 4, 0, symbol & 15, 0, 0};
    }
    return (Look){0, NONE, 0, 0, 0, 0, 0};
}

static ALWAYS int mean_of(Reader *r, const Codes *dc, int *mean) {
    fill(r);
    Look e = dc->look[r->window >> (64 - LOOK)];
    if (!e.length) e = symbol_of(dc, r->window);
    if (!e.length) return 0;
    *mean += value_of(r->window << e.length, e.size);
    take(r, e.length + e.size);
    return *mean >= -32768 && *mean <= 32767;
}

/* One symbol by itself, where a look is not enough; moves k behind it, to 64 at the block's end. `block` may be NULL. */
static ALWAYS int step(Reader *r, const Codes *ac, unsigned *k, JCOEF *block) {
    const Look e = symbol_of(ac, r->window);
    if (!e.length || e.size > 10) return 0;
    const uint64_t rest = r->window << e.length;
    take(r, e.length + e.size);
    if (!e.size && e.place < 15) return *k = 64, 1;
    *k += e.place + 1u;
    if (*k > 64) return 0;
    if (block && e.size) block[ZIGZAG[*k - 1]] = (JCOEF)value_of(rest, e.size);
    return 1;
}

/* The coefficients after the mean, to a block of zeros; 0 if they are not sound. */
static ALWAYS int coefficients(Reader *r, const Codes *ac, JCOEF *block) {
    for (unsigned k = 1;;) {
        fill(r);
        for (int twice = 0; twice < 2; twice++) { /* each takes 21 bits, or 26 in a step */
            const Look e = ac->look[r->window >> (64 - LOOK)];
            const unsigned to = k + e.advance;
            if (to <= 64 || (to >= END && to < END + 64)) {
                block[ZIGZAG[k + e.place]] = e.value;
                block[ZIGZAG[k + e.other]] = (JCOEF)(e.another + value_of(r->window << (e.length - e.size), e.size));
                take(r, e.length);
                if (to >= 64) return 1;
                k = to;
            } else {
                if (!step(r, ac, &k, block)) return 0;
                if (k == 64) return 1;
            }
        }
    }
}

/* The same, without looking at them. */
static ALWAYS int passed(Reader *r, const Codes *ac) {
    for (unsigned k = 1;;) {
        fill(r);
        for (int twice = 0; twice < 2; twice++) {
            const unsigned e = ac->many[r->window >> (64 - LOOK)], to = k + (e >> 6);
            if (to <= 64 || (to >= END && to < END + 64)) {
                take(r, e & 63);
                if (to >= 64) return 1;
                k = to;
            } else {
                if (!step(r, ac, &k, NULL)) return 0;
                if (k == 64) return 1;
            }
        }
    }
}

/* --- the scan --------------------------------------------------------------------------------------------------- */

/* Begin with the data that libjpeg is about to read; 0 if it is better left to it. */
static int scan_begin(
    Scan *s, Tables *t, const struct jpeg_decompress_struct *jpeg, const uint8_t *body, size_t size, uint8_t *scratch
) {
    int known = 1;
    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        s->part[i] = jpeg->MCU_membership[i];
        const jpeg_component_info *part = jpeg->cur_comp_info[s->part[i]];
        const JHUFF_TBL *dc = jpeg->dc_huff_tbl_ptrs[part->dc_tbl_no], *ac = jpeg->ac_huff_tbl_ptrs[part->ac_tbl_no];
        s->dc[i] = codes_of(t, 0, part->dc_tbl_no, dc, size);
        s->ac[i] = codes_of(t, 1, part->ac_tbl_no, ac, size);
        if (!s->dc[i] || !s->ac[i]) known = 0; /* go on: all of them have been seen now */
    }
    if (!known) return 0;
    s->body = body;
    s->size = size;
    s->scratch = scratch;
    s->at = size - jpeg->src->bytes_in_buffer;
    s->columns = s->to = (int)jpeg->MCUs_per_row;
    s->all = (long)jpeg->MCUs_per_row * (long)jpeg->MCU_rows_in_scan;
    return 1;
}

/* The next interval between restart markers; 0 if it does not begin as it must. */
static int scan_interval(Scan *s, long restarts) {
    if (s->done) {
        if (s->size - s->at < 2 || s->body[s->at + 1] != 0xD0 + ((s->done / restarts - 1) & 7)) return 0;
        s->at += 2;
    }
    s->length = unstuff(s->body, s->size, &s->at, s->scratch);
    memset(s->scratch + s->length, 0, 8); /* what is looked at beyond the end is always the same */
    s->reader = (Reader){s->scratch, 0, 0};
    memset(s->mean, 0, sizeof s->mean);
    s->todo = restarts && restarts < s->all - s->done ? restarts : s->all - s->done;
    return 1;
}

/* The next MCU: its coefficients, if `blocks` are given and it is asked for. 0 if it is not sound. */
static int scan_mcu(Scan *s, const struct jpeg_decompress_struct *jpeg, JBLOCKROW *blocks) {
    if (s->done == s->all || (!s->todo && !scan_interval(s, (long)jpeg->restart_interval))) return 0;
    const int wanted = blocks && s->column >= s->from && s->column < s->to;
    Reader r = s->reader;
    for (int i = 0; i < jpeg->blocks_in_MCU; i++) {
        int *mean = &s->mean[s->part[i]];
        if (!mean_of(&r, s->dc[i], mean)) return 0;
        if (wanted) {
            JCOEF *block = (JCOEF *)blocks[i];
            block[0] = (JCOEF)*mean;
            if (!coefficients(&r, s->ac[i], block)) return 0;
        } else if (!passed(&r, s->ac[i])) {
            return 0;
        }
    }
    s->reader = r;
    s->done++;
    s->todo--;
    if (++s->column == s->columns) s->column = 0;
    const ptrdiff_t left = 8 * (ptrdiff_t)s->length - taken(&r, s->scratch);
    return left >= 0 && (s->todo || left < 8);
}

/* Whether the rest of the scan is sound, and the end marker follows it. */
static int scan_ends_well(Scan *s, const struct jpeg_decompress_struct *jpeg) {
    while (s->done < s->all)
        if (!scan_mcu(s, jpeg, NULL)) return 0;
    return s->size - s->at >= 2 && s->body[s->at + 1] == 0xD9;
}

#endif
