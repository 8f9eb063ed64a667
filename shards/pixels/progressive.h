/* The scans of a progressive JPEG, walked without reconstructing anything: whether their data is whole, and the gray
   picture at an eighth of the size.

   Data is damaged where a code is in no table, where a run leads beyond the last coefficient of the scan or the last block,
   where a coefficient that a refinement adds is not 1, where data runs out, and where SPARE bytes or more are left of it.
   Of a sound file the scans also follow from one another, and every part has one of means (as jpeg.py, _check_scans).
   Of a refinement (refine.h), one must know which coefficients are not 0 already: a mask of 64 bits a block. Values
   matter of the means alone. Whatever is no plain progressive file is left to others (UNKNOWN).

   Sources: ITU-T T.81 (B.2, G.1.2); libjpeg-turbo's jdphuff.c. */

#ifndef PROGRESSIVE_H
#define PROGRESSIVE_H

#include <stdlib.h>

#include "bits.h"
#include "refine.h"

#define UNKNOWN 0
#define SOUND 1
#define DAMAGED (-1)
#define MAX_PARTS 4
#define MAX_SCANS 100          /* as jpeg.py */
#define MAX_SEGMENTS 1000
#define MAX_BLOCKS (1 << 24)   /* 128 MB of masks; a picture of as many pixels as we take has no more */

typedef struct {
    int id, across, down, table; /* table: of quantization */
    int wide, high;            /* blocks of the picture */
    int stride;                /* blocks of a row, with those that only fill up an MCU */
    size_t first;              /* number of its first block */
    int8_t missing[64];        /* of each coefficient: bits that have not been read, -1: all */
} Part;

typedef struct {
    Symbols symbols[2][4];     /* [0] of mean differences, [1] of coefficients */
    Part parts[MAX_PARTS];
    int count, width, height, columns, rows; /* MCUs */
    size_t blocks;
    uint64_t *masks;           /* of every block: coefficients that are not 0 */
    int16_t *means;            /* of the first part's */
    int quants[4], quant;      /* of the mean; of the first part, once its first scan has begun */
    long restarts;
    const uint8_t *body;
    size_t size, at;
    uint8_t *room, *scratch;   /* all of it; that which is free */
    size_t length;             /* of the interval's data, in scratch */
    Refinement waiting[2];     /* of the first part, and of another, if there is something to do in them */
    Symbols kept[2];           /* theirs */
    const Part *of;            /* the other */
} Walk;

typedef struct {
    Part *parts[MAX_PARTS];
    const Symbols *symbols[MAX_PARTS];
    unsigned long run;         /* blocks that end where they begin */
    uint64_t band;             /* of a mask: [from, to] */
    int count, from, to, high, low, mean[MAX_PARTS];
} Pass;

/* --- the header ------------------------------------------------------------------------------------------------- */

static int progressive_table(Walk *w, const uint8_t *s, int left) {
    if (left < 17 || (s[0] >> 4) > 1 || (s[0] & 15) > 3) return 0;
    Symbols *t = &w->symbols[s[0] >> 4][s[0] & 15];
    int32_t code = 0, index = 0;
    memset(t, 0, sizeof *t);
    for (int length = 1; length <= 16; length++, code <<= 1) {
        t->shift[length] = index - code;
        for (int i = 0; i < s[length]; i++, code++, index++) {
            if (code >= 1 << length || index > 255 || 17 + index >= left) return 0;
            t->values[index] = s[17 + index];
            if (s[0] < 16 && t->values[index] > 15) return 0;
            const uint32_t e = symbol_entry(length, t->values[index]);
            for (int j = 0; length <= PEEK && j < 1 << (PEEK - length); j++) t->look[(code << (PEEK - length)) + j] = e;
        }
        t->last[length] = s[length] ? code - 1 : -1;
    }
    t->known = 1;
    return 17 + index;
}

static int progressive_frame(Walk *w, const uint8_t *s, int length) {
    int most_across = 0, most_down = 0;
    if (w->count || length < 6 || s[0] != 8 || s[5] < 1 || s[5] > MAX_PARTS || length != 6 + 3 * s[5]) return 0;
    w->height = s[1] << 8 | s[2];
    w->width = s[3] << 8 | s[4];
    w->count = s[5];
    if (!w->width || !w->height || w->width > 65500 || w->height > 65500) return 0; /* as libjpeg */
    for (int i = 0; i < w->count; i++) {
        Part *p = &w->parts[i];
        p->id = s[6 + 3 * i];
        p->across = s[7 + 3 * i] >> 4;
        p->down = s[7 + 3 * i] & 15;
        p->table = s[8 + 3 * i];
        if (p->across < 1 || p->across > 4 || p->down < 1 || p->down > 4 || p->table > 3) return 0;
        if (p->across > most_across) most_across = p->across;
        if (p->down > most_down) most_down = p->down;
    }
    w->columns = (w->width + 8 * most_across - 1) / (8 * most_across);
    w->rows = (w->height + 8 * most_down - 1) / (8 * most_down);
    for (int i = 0; i < w->count; i++) {
        Part *p = &w->parts[i];
        p->wide = (w->width * p->across + 8 * most_across - 1) / (8 * most_across);
        p->high = (w->height * p->down + 8 * most_down - 1) / (8 * most_down);
        p->stride = w->columns * p->across;
        p->first = w->blocks;
        w->blocks += (size_t)p->stride * (size_t)(w->rows * p->down);
        memset(p->missing, -1, sizeof p->missing);
    }
    return w->blocks <= MAX_BLOCKS;
}

static int progressive_pass(Walk *w, Pass *p, const uint8_t *s, int length) {
    int blocks = 0;
    memset(p, 0, sizeof *p);
    if (!w->count || length < 6 || s[0] < 1 || s[0] > w->count || length != 4 + 2 * s[0]) return 0;
    p->count = s[0];
    p->from = s[length - 3];
    p->to = s[length - 2];
    p->high = s[length - 1] >> 4;
    p->low = s[length - 1] & 15;
    p->band = (~0ull >> (63 - (p->to & 63))) & (~0ull << (p->from & 63));
    if (p->to > 63 || p->from > p->to || (p->from ? p->count > 1 : p->to > 0)) return 0;
    if (p->low > 13 || (p->high && p->low != p->high - 1)) return 0;
    for (int i = 0; i < p->count; i++) {
        for (int n = 0; n < w->count; n++)
            if (w->parts[n].id == s[1 + 2 * i] && !p->parts[i]) p->parts[i] = &w->parts[n];
        const int number = p->from ? s[2 + 2 * i] & 15 : s[2 + 2 * i] >> 4;
        if (!p->parts[i] || number > 3) return 0;
        p->symbols[i] = &w->symbols[p->from > 0][number];
        if (!p->symbols[i]->known && (p->from || !p->high)) return 0;
        for (int k = p->from; k <= p->to; k++) {
            if (p->parts[i]->missing[k] != (p->high ? p->high : -1)) return 0;
            p->parts[i]->missing[k] = (int8_t)p->low;
        }
        if (!w->quants[p->parts[i]->table]) return 0;
        if (p->parts[i] == w->parts && !w->quant) w->quant = w->quants[w->parts[0].table];
        blocks += p->parts[i]->across * p->parts[i]->down;
    }
    return p->count == 1 || blocks <= 10;
}

/* --- blocks ----------------------------------------------------------------------------------------------------- */

static ALWAYS int mean_bits(Reader *r, const Symbols *t, int *mean) {
    fill(r);
    const uint64_t before = r->window;
    const unsigned real = r->bits;
    const uint32_t e = progressive_symbol(r, t);
    const int size = (int)(e >> 8 & 15);
    if (!e) return 0;
    if (size) {
        const int bits = (int)(before << (real - r->bits - (unsigned)size) >> (64 - size));
        *mean += bits >> (size - 1) ? bits : bits - (1 << size) + 1;
    }
    return *mean >= -32768 && *mean <= 32767;
}

static ALWAYS int first_bits(Reader *r, Pass *p, uint64_t *mask) {
    uint64_t found = 0;
    for (int k = p->from; k <= p->to;) {
        fill(r);
        for (int twice = 0; twice < 2 && k <= p->to; twice++) { /* at most 16 + 10 bits, then 16 + 14 */
            const uint32_t e = progressive_symbol(r, p->symbols[0]);
            const int size = (int)(e >> 8 & 15), run = (int)(e >> 12 & 15);
            if (!e || size > 10) return 0;
            if (!size && run < 15) {
                p->run = run_of(r, run);
                *mask |= found;
                return 1;
            }
            k += run;
            if (k > p->to) return 0;
            found |= (uint64_t)(size > 0) << k++;
        }
    }
    *mask |= found;
    return 1;
}

static ALWAYS int refined_bits(Reader *r, Pass *p, uint64_t *mask, int quick) {
    Refined b = refine_begins(*mask, p->band);
    while (b.rest)
        if (!refine_symbol(r, p->symbols[0], &b, &p->run, quick)) return 0;
    *mask |= refine_ends(r, &b);
    return 1;
}

/* Block number `at` of part i of the scan; 0 if it is damaged. */
static ALWAYS int block_bits(Walk *w, Reader *r, Pass *p, int i, size_t at, int ac, int refines, int quick) {
    if (ac && p->run) {
        p->run--;
        if (refines) {
            fill(r);
            pass_over(r, w->masks[at] & p->band, 56);
        }
        return 1;
    }
    if (ac) return refines ? refined_bits(r, p, &w->masks[at], quick) : first_bits(r, p, &w->masks[at]);
    const int gray = p->parts[i] == w->parts;
    if (refines) {
        fill(r);
        if (gray && r->window >> 63) w->means[at] = (int16_t)(w->means[at] | 1 << p->low);
        take(r, 1);
        return 1;
    }
    if (!mean_bits(r, p->symbols[i], &p->mean[i])) return 0;
    if (gray) w->means[at] = (int16_t)((unsigned)p->mean[i] << p->low);
    return 1;
}

/* --- scans ------------------------------------------------------------------------------------------------------ */

static int interval_begins(Walk *w, Reader *r, Pass *p, long number) {
    while (w->size - w->at > 2 && w->body[w->at] == 0xFF && w->body[w->at + 1] == 0xFF) w->at++;
    if (number) {
        if (w->size - w->at < 2 || w->body[w->at] != 0xFF || w->body[w->at + 1] != 0xD0 + ((number - 1) & 7)) return 0;
        w->at += 2;
    }
    w->length = unstuff(w->body, w->size, &w->at, w->scratch);
    memset(w->scratch + w->length, 0, 8);
    *r = (Reader){w->scratch, 0, 0};
    p->run = 0;
    memset(p->mean, 0, sizeof p->mean);
    return 1;
}

static ALWAYS int scan_bits(Walk *w, Pass *p, int ac, int refines, int quick) {
    const int alone = ac || p->count == 1;
    const size_t columns = (size_t)(alone ? p->parts[0]->wide : w->columns);
    const long all = (long)columns * (alone ? p->parts[0]->high : w->rows);
    Reader r = {w->scratch, 0, 0};
    size_t row = 0, column = 0;
    for (long done = 0, todo = 0; done < all; done++, todo--) {
        if (!todo) {
            if (!interval_begins(w, &r, p, w->restarts ? done / w->restarts : 0)) return 0;
            todo = w->restarts && w->restarts < all - done ? w->restarts : all - done;
        }
        for (int i = 0; i < (ac ? 1 : p->count); i++) {
            const Part *part = p->parts[i];
            const size_t wide = alone ? 1 : (size_t)part->across, high = alone ? 1 : (size_t)part->down;
            for (size_t y = 0; y < high; y++) {
                for (size_t x = 0; x < wide; x++) {
                    const size_t at = part->first + (row * high + y) * (size_t)part->stride + column * wide + x;
                    if (!block_bits(w, &r, p, i, at, ac, refines, quick)) return 0;
                }
            }
        }
        const ptrdiff_t left = 8 * (ptrdiff_t)w->length - taken(&r, w->scratch);
        if (left < 0 || (todo == 1 && (left >= 8 * SPARE || p->run))) return 0; /* it ran out, or goes on */
        if (++column == columns) column = 0, row++;
    }
    return 1;
}

static ALWAYS int scan_kind(Walk *w, Pass *p, int quick) {
    if (p->from) return p->high ? scan_bits(w, p, 1, 1, quick) : scan_bits(w, p, 1, 0, quick);
    return p->high ? scan_bits(w, p, 0, 1, quick) : scan_bits(w, p, 0, 0, quick);
}

static int scan_plain(Walk *w, Pass *p) { return scan_kind(w, p, 0); }

#ifdef __x86_64__
__attribute__((target("bmi,bmi2,popcnt"))) static int scan_quick(Walk *w, Pass *p) { return scan_kind(w, p, 1); }

static int scan_now(Walk *w, Pass *p) { return is_quick() ? scan_quick(w, p) : scan_plain(w, p); }
#else
static int scan_now(Walk *w, Pass *p) { return scan_plain(w, p); }
#endif

/* Walk the refinements that wait; 0 if one is damaged. */
static int released(Walk *w) {
    const int sound = refine(&w->waiting[0], &w->waiting[1], 0);
    w->waiting[0].todo = w->waiting[1].todo = 0;
    w->scratch = w->room;
    return sound;
}

/* Walk a refinement with one that waits; if none does, this one waits. Those of the first part, most of the work, are
   walked with one another. 0 if they are damaged. */
static int refine_scan(Walk *w, Pass *p) {
    const int other = p->parts[0] != w->parts;
    Refinement *waiting = &w->waiting[other], made;
    memset(&made, 0, sizeof made);
    if (!interval_begins(w, &made.reader, p, 0)) return 0;
    made.data = w->scratch;
    made.length = w->length;
    made.symbols = p->symbols[0];
    made.band = p->band;
    made.mask = w->masks + p->parts[0]->first;
    made.columns = (size_t)p->parts[0]->wide;
    made.beyond = (size_t)p->parts[0]->stride - made.columns;
    made.todo = made.columns * (size_t)p->parts[0]->high;
    if (waiting->todo) {
        const int sound = refine(waiting, &made, w->of == p->parts[0] || !other);
        waiting->todo = 0;
        if (!w->waiting[!other].todo) w->scratch = w->room;
        return sound;
    }
    w->kept[other] = *made.symbols; /* the next scan may define others */
    made.symbols = &w->kept[other];
    if (other) w->of = p->parts[0];
    *waiting = made;
    w->scratch += w->length + 8;
    return 1;
}

/* Walk a scan, or let it wait for another to be walked with; 0 if it is damaged, or one that waited. */
static int progressive_scan(Walk *w, Pass *p) {
    if (!p->from || !p->high) return scan_now(w, p);
    return w->restarts ? released(w) && scan_now(w, p) : refine_scan(w, p);
}

/* --- files ------------------------------------------------------------------------------------------------------ */

/* Walk everything up to the end marker, but for scans that wait. */
static int progressive_segments(Walk *w) {
    Pass pass;
    int scans = 0;
    w->at = 2;
    for (int segments = 0; segments < MAX_SEGMENTS && w->size - w->at >= 4 && w->body[w->at] == 0xFF; segments++) {
        const int marker = w->body[w->at + 1];
        if (marker == 0xFF) {
            w->at++;
            continue;
        }
        const int length = (w->body[w->at + 2] << 8 | w->body[w->at + 3]) - 2;
        const uint8_t *s = w->body + w->at + 4;
        if (marker == 0xD9) break;
        if (length < 0 || (size_t)length > w->size - w->at - 4) return UNKNOWN;
        w->at += 4 + (size_t)length;
        if (marker == 0xC4) {
            for (int used, n = 0; n < length; n += used)
                if (!(used = progressive_table(w, s + n, length - n))) return UNKNOWN;
        } else if (marker == 0xDB) {
            for (int used, n = 0; n < length; n += used) {
                used = s[n] < 16 ? 65 : 129;
                if (length - n < used || s[n] >> 4 > 1 || (s[n] & 15) > 3) return UNKNOWN;
                w->quants[s[n] & 15] = used == 65 ? s[n + 1] : s[n + 1] << 8 | s[n + 2];
            }
        } else if (marker == 0xC2) {
            if (!progressive_frame(w, s, length)) return UNKNOWN;
            w->masks = calloc(w->blocks, sizeof *w->masks);
            w->means = calloc((size_t)w->parts[0].stride * (size_t)(w->rows * w->parts[0].down), sizeof *w->means);
            if (!w->masks || !w->means) return UNKNOWN;
        } else if (marker == 0xDD) {
            if (length != 2) return UNKNOWN;
            w->restarts = s[0] << 8 | s[1];
        } else if (marker == 0xDA) {
            if (++scans > MAX_SCANS || !progressive_pass(w, &pass, s, length)) return UNKNOWN;
            if (!progressive_scan(w, &pass)) return DAMAGED;
        } else if (marker != 0xFE && (marker < 0xE0 || marker > 0xEF)) {
            return UNKNOWN;
        }
    }
    for (int i = 0; i < w->count; i++)
        if (w->parts[i].missing[0] < 0) return UNKNOWN;
    return w->count && w->size - w->at >= 2 && w->body[w->at] == 0xFF && w->body[w->at + 1] == 0xD9 ? SOUND : UNKNOWN;
}

/* The gray picture of what was walked; 0 if it is not as simple as that: libjpeg smooths what is not refined. */
static long progressive_plane(const Walk *w, uint8_t *plane, size_t room) {
    const int wide = (w->width + 7) / 8, high = (w->height + 7) / 8;
    const Part *gray = w->parts;
    if ((size_t)wide * (size_t)high > room || gray->wide != wide || gray->high != high || !w->quant) return 0;
    for (int i = 0; i < w->count; i++)
        for (int k = 0; k < 64; k++)
            if (w->parts[i].missing[k]) return 0;
    for (int row = 0; row < high; row++) {
        for (int column = 0; column < wide; column++) {
            int level = (w->means[(size_t)row * (size_t)gray->stride + (size_t)column] * w->quant + 4) >> 3;
            if (level < -512 || level > 511) return 0; /* libjpeg wraps around there */
            level += 128;
            plane[(size_t)row * (size_t)wide + (size_t)column] = (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
        }
    }
    return (long)wide << 16 | high;
}

/* UNKNOWN, DAMAGED, SOUND, or of a sound body with a plane (width << 16 | height) of it. Scratch as for entropy_plane. */
long entropy_progressive(
    const uint8_t *body, size_t size, uint8_t *scratch, size_t scratch_room, uint8_t *plane, size_t room
) {
    Walk w;
    if (scratch_room < size + OVERRUN || size < 4 || body[0] != 0xFF || body[1] != 0xD8) return UNKNOWN;
    memset(&w, 0, sizeof w);
    w.body = body;
    w.size = size;
    w.room = w.scratch = scratch;
    long found = progressive_segments(&w);
    if (!released(&w)) found = DAMAGED;
    if (found == SOUND && progressive_plane(&w, plane, room)) found = (long)((w.width + 7) / 8) << 16 | (w.height + 7) / 8;
    free(w.masks);
    free(w.means);
    return found;
}

#endif
