/* Proof that the data of a baseline JPEG is whole, and its gray picture at an eighth of the size.

   Walks the Huffman codes of one sequential scan without reconstructing anything. It answers only when every rule below
   holds, and "I do not know" (0) for anything else, which then goes to the reference decoder: progressive or arithmetic
   files, several scans, other samplings than 1x1 to 2x2, junk between segments, anything after the end marker, codes
   that no table has, coefficients beyond the 64th, restart markers out of order, data left over, data that runs out.

   Sources: ITU-T T.81 (B.2, F.1.2, F.2.2); the arithmetic of one block's mean is that of libjpeg's 1x1 inverse DCT.
   Memory: reads body[0..size) and scratch, writes scratch, plane[0..room) and the context; nothing else. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "bits.h"
#include "progressive.h"

#define LOOK 12                /* bits that one look at a table takes in; 12 keeps two tables in the first cache */
#define WAYS (1 << LOOK)
#define END 128                /* in the advance of an entry: the block ends here */
#define NONE (255u << 6)       /* an entry that says nothing: its code is longer than LOOK bits, or there is none */

/* An entry of a table: 6 bits: how many bits it takes; above: how far it advances in the block. */
typedef struct {
    uint16_t many[WAYS];       /* as many whole symbols as LOOK bits hold */
    uint16_t one[WAYS];        /* the first of them alone */
    int32_t last[18];          /* of the codes of each length: the largest code, -1 if there is none */
    int32_t shift[18];         /* index of a value minus its code */
    uint8_t counts[16];
    uint8_t values[256];
    int known;                 /* counts and values are those of the entries */
} Table;

typedef struct {
    Table tables[2][4];        /* [0] of mean differences, [1] of coefficients */
} Context;

typedef struct {
    int id, across, down, quant, dc, ac, mean;
} Component;

size_t entropy_context(void) { return sizeof(Context); }
size_t entropy_overrun(void) { return OVERRUN; }

/* Of a symbol: how many bits it takes with its code of `length`, and how far it advances; NONE if it is no symbol. */
static uint16_t entry(int is_ac, int value, int length) {
    int size = value & 15, run = value >> 4;
    if (!is_ac) return value > 11 ? NONE : (uint16_t)(length | value << 6);
    if (size > 10) return NONE;
    return (uint16_t)((length + size) | (size ? run + 1 : run == 15 ? 16 : run == 0 ? END : 255) << 6);
}

static void fuse(Table *t) {
    for (unsigned way = 0; way < WAYS; way++) {
        unsigned bits = t->one[way] & 63, advance = t->one[way] >> 6;
        while (advance < 64 && bits < LOOK) {
            uint16_t next = t->one[(way << bits) & (WAYS - 1)];
            if ((next >> 6) == 255 || bits + (next & 63) > LOOK || advance + ((next >> 6) & 127) > 63) break;
            bits += next & 63;
            advance += next >> 6;
        }
        t->many[way] = (uint16_t)(bits | advance << 6);
    }
}

/* Returns the bytes read of a table definition's `left`, 0 if it is not sound. */
static int define(Context *c, const uint8_t *s, int left) {
    if (left < 17 || (s[0] >> 4) > 1 || (s[0] & 15) > 3) return 0;
    int is_ac = s[0] >> 4, total = 0;
    Table *t = &c->tables[is_ac][s[0] & 15];
    for (int i = 0; i < 16; i++) total += s[1 + i];
    if (total > 256 || left < 17 + total) return 0;
    if (t->known && !memcmp(t->counts, s + 1, 16) && !memcmp(t->values, s + 17, (size_t)total)) return 17 + total;
    t->known = 0;
    memcpy(t->counts, s + 1, 16);
    memcpy(t->values, s + 17, (size_t)total);
    for (int way = 0; way < WAYS; way++) t->one[way] = NONE;
    int32_t code = 0, index = 0;
    for (int length = 1; length <= 16; length++, code <<= 1) {
        t->shift[length] = index - code;
        for (int i = 0; i < t->counts[length - 1]; i++, code++, index++) {
            if (code >= (1 << length) - 1) return 0; /* the code of all ones is not allowed */
            uint16_t e = entry(is_ac, t->values[index], length);
            if (e == NONE || e >> 6 == 255) return 0;
            for (int j = 0; length <= LOOK && j < 1 << (LOOK - length); j++)
                t->one[(code << (LOOK - length)) + j] = e;
        }
        t->last[length] = t->counts[length - 1] ? code - 1 : -1;
    }
    if (is_ac) fuse(t);
    t->known = 1;
    return 17 + total;
}

/* The entry of the next code, whatever its length; NONE if no table has it. */
static uint16_t long_way(const Table *t, int is_ac, uint64_t window) {
    uint16_t e = t->one[window >> (64 - LOOK)];
    if (e != NONE) return e;
    for (int length = LOOK + 1; length <= 16; length++) {
        int32_t code = (int32_t)(window >> (64 - length));
        if (t->last[length] >= 0 && code <= t->last[length] && code + t->shift[length] >= 0)
            return entry(is_ac, t->values[code + t->shift[length]], length);
    }
    return NONE;
}

/* One block; 0 if its codes are not sound. */
static inline int block(Reader *r, const Table *dc, const Table *ac, int *mean) {
    fill(r);
    uint16_t e = long_way(dc, 0, r->window);
    if (e == NONE) return 0;
    unsigned length = e & 63, size = e >> 6;
    take(r, length);
    if (size) {
        int bits = (int)(r->window >> (64 - size));
        *mean += bits >> (size - 1) ? bits : bits - (1 << size) + 1;
        take(r, size);
    }
    for (unsigned k = 1;;) {
        fill(r);
        for (int twice = 0; twice < 2; twice++) {
            e = ac->many[r->window >> (64 - LOOK)];
            unsigned to = k + (e >> 6);
            if (to >= 64) {
                if (to == 64 || (to >= END && to < END + 64)) { /* full, or ended before it was */
                    take(r, e & 63);
                    return 1;
                }
                e = long_way(ac, 1, r->window);
                to = k + (e >> 6);
                if (e == NONE || (to > 64 && (to < END || to >= END + 64))) return 0;
                take(r, e & 63);
                if (to >= 64) return 1;
            } else {
                take(r, e & 63);
            }
            k = to;
        }
    }
}

typedef struct {
    int width, height, count, restarts, blocks_across, blocks_down; /* blocks: MCUs */
    Component part[4];
    int quants[4];             /* of the mean; 0: not defined */
    size_t data;               /* where the scan's data begins */
} Header;

static int frame(Header *h, const uint8_t *s, int length) {
    int most_across = 0, most_down = 0, blocks = 0;
    if (h->count || length < 6 || s[0] != 8) return 0;
    h->height = s[1] << 8 | s[2];
    h->width = s[3] << 8 | s[4];
    h->count = s[5];
    if (!h->width || !h->height || (h->count != 1 && h->count != 3) || length != 6 + 3 * h->count) return 0;
    for (int i = 0; i < h->count; i++) {
        Component *p = &h->part[i];
        p->id = s[6 + 3 * i];
        p->across = s[7 + 3 * i] >> 4;
        p->down = s[7 + 3 * i] & 15;
        p->quant = s[8 + 3 * i];
        if (p->across < 1 || p->across > 2 || p->down < 1 || p->down > 2 || p->quant > 3) return 0;
        if (h->count == 1) p->across = p->down = 1; /* a scan of one component is not interleaved */
        if (p->across > most_across) most_across = p->across;
        if (p->down > most_down) most_down = p->down;
        blocks += p->across * p->down;
    }
    if (blocks > 10 || h->part[0].across != most_across || h->part[0].down != most_down) return 0;
    h->blocks_across = (h->width + 8 * most_across - 1) / (8 * most_across);
    h->blocks_down = (h->height + 8 * most_down - 1) / (8 * most_down);
    return 1;
}

static int scan(Context *c, Header *h, const uint8_t *s, int length) {
    if (!h->count || length != 4 + 2 * h->count || s[0] != h->count) return 0;
    for (int i = 0; i < h->count; i++) {
        Component *p = &h->part[i];
        p->dc = s[2 + 2 * i] >> 4;
        p->ac = s[2 + 2 * i] & 15;
        if (s[1 + 2 * i] != p->id || p->dc > 3 || p->ac > 3 || !h->quants[p->quant]) return 0;
        if (c->tables[0][p->dc].known != 2 || c->tables[1][p->ac].known != 2) return 0;
    }
    const uint8_t *rest = s + 1 + 2 * h->count;
    return rest[0] == 0 && rest[1] == 63 && rest[2] == 0;
}

/* Everything up to the scan's data; 0 if it is not as plain as it must be. */
static int header(Context *c, Header *h, const uint8_t *body, size_t size) {
    size_t at = 2;
    for (int i = 0; i < 8; i++)
        if (c->tables[i / 4][i % 4].known) c->tables[i / 4][i % 4].known = 1; /* of another file, as yet */
    if (size < 4 || body[0] != 0xFF || body[1] != 0xD8) return 0;
    while (at + 4 <= size && body[at] == 0xFF) {
        int marker = body[at + 1], length = (body[at + 2] << 8 | body[at + 3]) - 2;
        const uint8_t *s = body + at + 4;
        if (length < 0 || (size_t)length > size - at - 4) return 0;
        at += 4 + (size_t)length;
        if (marker == 0xC4) {
            for (int used, n = 0; n < length; n += used) {
                used = define(c, s + n, length - n);
                if (!used) return 0;
                c->tables[s[n] >> 4][s[n] & 15].known = 2; /* of this file */
            }
        } else if (marker == 0xDB) {
            for (int n = 0; n < length; n += 65) {
                if (length - n < 65 || s[n] > 3 || !s[n + 1]) return 0; /* 16-bit tables too */
                h->quants[s[n]] = s[n + 1];
            }
        } else if (marker == 0xC0 || marker == 0xC1) {
            if (!frame(h, s, length)) return 0;
        } else if (marker == 0xDD) {
            if (length != 2) return 0;
            h->restarts = s[0] << 8 | s[1];
        } else if (marker == 0xDA) {
            h->data = at;
            return scan(c, h, s, length);
        } else if (marker != 0xFE && (marker < 0xE0 || marker > 0xEF)) {
            return 0;
        }
    }
    return 0;
}

/* The gray picture of a sound body: (width << 16 | height) of the plane that was written, row by row; 0: not known.
   `scratch` has room for size + OVERRUN bytes, all of them initialised once; `context` begins as zeros. */
long entropy_plane(
    Context *context, const uint8_t *body, size_t size, uint8_t *scratch, size_t scratch_room, uint8_t *plane, size_t room
) {
    Header h;
    memset(&h, 0, sizeof h);
    if (scratch_room < size + OVERRUN || !header(context, &h, body, size)) return 0;
    int wide = (h.width + 7) / 8, high = (h.height + 7) / 8;
    if ((size_t)wide * (size_t)high > room) return 0;
    long blocks = (long)h.blocks_across * h.blocks_down, todo = 0, done = 0;
    size_t at = h.data, length = 0;
    Reader r = {scratch, 0, 0};
    for (int down = 0; down < h.blocks_down; down++) {
        for (int across = 0; across < h.blocks_across; across++) {
            if (!todo) { /* the first interval, or the next */
                if (done) {
                    int number = (int)((done / h.restarts - 1) & 7);
                    if (at + 2 > size || body[at] != 0xFF || body[at + 1] != 0xD0 + number) return 0;
                    at += 2;
                }
                length = unstuff(body, size, &at, scratch);
                r = (Reader){scratch, 0, 0};
                for (int i = 0; i < h.count; i++) h.part[i].mean = 0;
                todo = h.restarts && h.restarts < blocks - done ? h.restarts : blocks - done;
            }
            for (int i = 0; i < h.count; i++) {
                Component *p = &h.part[i];
                const Table *dc = &context->tables[0][p->dc], *ac = &context->tables[1][p->ac];
                for (int y = 0; y < p->down; y++) {
                    for (int x = 0; x < p->across; x++) {
                        if (!block(&r, dc, ac, &p->mean)) return 0;
                        if (p->mean < -32768 || p->mean > 32767) return 0;
                        int column = across * p->across + x, row = down * p->down + y;
                        if (i || column >= wide || row >= high) continue;
                        int level = (p->mean * h.quants[p->quant] + 4) >> 3;
                        if (level < -512 || level > 511) return 0; /* libjpeg wraps around there */
                        level += 128;
                        plane[(size_t)row * (size_t)wide + (size_t)column] =
                            (uint8_t)(level < 0 ? 0 : level > 255 ? 255 : level);
                    }
                }
            }
            ptrdiff_t used = taken(&r, scratch);
            done++;
            todo--;
            if (used > 8 * (ptrdiff_t)length) return 0; /* it ran out */
            if (!todo && 8 * (ptrdiff_t)length - used > 7) return 0; /* it goes on */
        }
    }
    return at + 2 == size && body[at] == 0xFF && body[at + 1] == 0xD9 ? (long)wide << 16 | high : 0;
}
