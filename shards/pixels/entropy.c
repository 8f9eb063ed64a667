/* Proof that the data of a baseline JPEG is whole, and its gray picture at an eighth of the size.

   Walks the Huffman codes of one sequential scan (codes.h), from several places at once (ahead.h), without
   reconstructing anything. It answers only when every rule below holds, and "I do not know" (0) for anything else,
   which then goes to the reference decoder: progressive or arithmetic files, several scans, other samplings than 1x1 to
   2x2, junk between segments, anything after the end marker, codes that no table has, coefficients beyond the 64th,
   restart markers out of order, data left over, data that runs out.

   Sources: ITU-T T.81 (B.2, F.1.2, F.2.2); the arithmetic of one block's mean is that of libjpeg's 1x1 inverse DCT.
   Memory: reads body[0..size) and scratch, writes scratch, plane[0..room) and the context; nothing else. */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "ahead.h"
#include "bits.h"
#include "codes.h"
#include "progressive.h"

typedef struct {
    Table tables[2][4];        /* [0] of mean differences, [1] of coefficients */
} Context;

typedef struct {
    int id, across, down, quant, dc, ac, mean;
} Component;

size_t entropy_context(void) { return sizeof(Context); }

/* Bytes of scratch for a body: its data without stuffing, and the trails of who walks ahead. */
size_t entropy_scratch(size_t size) { return 2 * size + OVERRUN; }

/* Add the difference that a window begins with to the mean; returns its bits, 0 if no table has its code. */
static ALWAYS unsigned add_difference(const Table *dc, uint64_t window, int *mean) {
    const uint16_t e = long_way(dc, 0, window);
    const unsigned length = e & 63, size = e >> 6;
    if (e == NONE) return 0;
    const int bits = (int)(window << length >> 1 >> (63 - size)), negative = !(window << length >> 63);
    *mean += bits - (-negative & ((1 << size) - 1));
    return length + size;
}

/* One block; 0 if its codes are not sound. */
static ALWAYS int block(Reader *r, const Table *dc, const Table *ac, int *mean) {
    fill(r);
    const unsigned length = add_difference(dc, r->window, mean);
    if (!length) return 0;
    take(r, length);
    for (unsigned k = 0;;) {
        fill(r);
        for (int twice = 0; twice < 2; twice++) {
            unsigned e = ac->many[r->window >> (64 - LOOK)], to = k + (e >> 6);
            if (to & WRONG) {
                e = long_way(ac, 1, r->window);
                to = k + (e >> 6);
                if (to & WRONG) return 0;
            }
            take(r, e & 63);
            if (to >= FULL) return 1;
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
                used = define(c->tables, s + n, length - n);
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

/* The blocks of an MCU, for who walks ahead. */
static void kinds_of(Ahead *a, const Context *c, const Header *h) {
    a->blocks = 0;
    for (int i = 0; i < h->count; i++) {
        const Component *p = &h->part[i];
        for (int n = p->across * p->down; n; n--) {
            Kind *kind = &a->kinds[a->blocks++];
            *kind = (Kind){&c->tables[0][p->dc], &c->tables[1][p->ac], kind + 1};
        }
    }
    a->kinds[a->blocks - 1].next = a->kinds;
}

/* The gray picture of a sound body: (width << 16 | height) of the plane that was written, row by row; 0: not known.
   `scratch` has room for entropy_scratch(size) bytes, aligned as by malloc, all of them initialised once; `context`
   begins as zeros. */
long entropy_plane(
    Context *context, const uint8_t *body, size_t size, uint8_t *scratch, size_t scratch_room, uint8_t *plane, size_t room
) {
    Header h;
    Ahead ahead;
    uint32_t *trails = (uint32_t *)(void *)(scratch + (size + OVERRUN) / sizeof *trails * sizeof *trails);
    memset(&h, 0, sizeof h);
    if (scratch_room < entropy_scratch(size) || !header(context, &h, body, size)) return 0;
    int wide = (h.width + 7) / 8, high = (h.height + 7) / 8;
    if ((size_t)wide * (size_t)high > room) return 0;
    long blocks = (long)h.blocks_across * h.blocks_down, todo = 0, done = 0;
    size_t begin = h.data, length = 0, at = 0;
    kinds_of(&ahead, context, &h);
    for (int down = 0; down < h.blocks_down; down++) {
        for (int across = 0; across < h.blocks_across; across++) {
            if (!todo) { /* the first interval, or the next */
                if (done) {
                    int number = (int)((done / h.restarts - 1) & 7);
                    if (begin + 2 > size || body[begin] != 0xFF || body[begin + 1] != 0xD0 + number) return 0;
                    begin += 2;
                }
                length = unstuff(body, size, &begin, scratch);
                at = 0;
                for (int i = 0; i < h.count; i++) h.part[i].mean = 0;
                todo = h.restarts && h.restarts < blocks - done ? h.restarts : blocks - done;
                walk_ahead(&ahead, scratch, length, trails, size / sizeof *trails / WALKERS);
            }
            const uint32_t *known = blocks_of(&ahead, at);
            Reader r = reader_at(scratch, at);
            for (int i = 0, n = 0; i < h.count; i++) {
                Component *p = &h.part[i];
                const Table *dc = &context->tables[0][p->dc], *ac = &context->tables[1][p->ac];
                for (int y = 0; y < p->down; y++) {
                    for (int x = 0; x < p->across; x++) {
                        if (known ? !add_difference(dc, bits_at(scratch, known[n++]), &p->mean)
                                  : !block(&r, dc, ac, &p->mean))
                            return 0;
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
            at = known ? known[ahead.blocks] : (size_t)taken(&r, scratch);
            done++;
            todo--;
            if (at > 8 * length) return 0; /* it ran out */
            if (!todo && 8 * length - at > 7) return 0; /* it goes on */
        }
    }
    return begin + 2 == size && body[begin] == 0xFF && body[begin + 1] == 0xD9 ? (long)wide << 16 | high : 0;
}
