/* Tables of a sequential JPEG's Huffman codes, for who wants to know where its blocks end and not what is in them. */

#ifndef CODES_H
#define CODES_H

#include "bits.h"

#define LOOK 12                /* bits that one look at a table takes in; 12 keeps two tables in the first cache */
#define WAYS (1 << LOOK)
#define FULL 63                /* the advance of a whole block: its coefficients after the mean */
#define WRONG 64               /* in an advance: it leads beyond the last coefficient, or there is no such code */
#define END 129                /* as the advance of the symbol that ends a block: FULL and it would be WRONG */
#define NONE (WRONG << 6)      /* an entry that says nothing: its code is longer than LOOK bits, or there is none */

/* An entry of a table: 6 bits: how many bits it takes; above: how far it advances in the block, or of a mean difference
   in `one` the size of its value. */
typedef struct {
    uint16_t many[WAYS];       /* as many whole symbols as LOOK bits hold codes of; the value of the last may go on */
    uint16_t one[WAYS];        /* the first of them alone */
    int32_t last[18];          /* of the codes of each length: the largest code, -1 if there is none */
    int32_t shift[18];         /* index of a value minus its code */
    uint8_t counts[16];
    uint8_t values[256];
    int known;                 /* counts and values are those of the entries */
} Table;

/* Of a symbol with a code of `length` bits, as in `one`; NONE if it is no symbol. */
static uint16_t entry(int is_ac, int value, int length) {
    int size = value & 15, run = value >> 4;
    if (!is_ac) return value > 11 ? NONE : (uint16_t)(length | value << 6);
    if (size > 10 || (!size && run && run < 15)) return NONE;
    return (uint16_t)((length + size) | (value ? run + 1 : END) << 6);
}

/* Fill `many`, of whose first codes the lengths are given. */
static void fuse(Table *t, const uint8_t *lengths) {
    for (unsigned way = 0; way < WAYS; way++) {
        unsigned bits = t->one[way] & 63, advance = t->one[way] >> 6;
        while (advance <= FULL && bits < LOOK) {
            const unsigned rest = (way << bits) & (WAYS - 1), next = t->one[rest];
            if (next == NONE || bits + lengths[rest] > LOOK || advance + (next >> 6 & 127) > FULL) break;
            bits += next & 63;
            advance += next >> 6;
        }
        t->many[way] = (uint16_t)(bits | advance << 6);
    }
}

/* Returns the bytes read of a table definition's `left`, 0 if it is not sound. */
static int define(Table tables[2][4], const uint8_t *s, int left) {
    if (left < 17 || (s[0] >> 4) > 1 || (s[0] & 15) > 3) return 0;
    int is_ac = s[0] >> 4, total = 0;
    Table *t = &tables[is_ac][s[0] & 15];
    uint8_t lengths[WAYS];
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
            if (e == NONE) return 0;
            for (int j = 0; length <= LOOK && j < 1 << (LOOK - length); j++) {
                t->one[(code << (LOOK - length)) + j] = e;
                lengths[(code << (LOOK - length)) + j] = (uint8_t)length;
            }
        }
        t->last[length] = t->counts[length - 1] ? code - 1 : -1;
    }
    if (is_ac) fuse(t, lengths);
    t->known = 1;
    return 17 + total;
}

/* The next symbol, whatever the length of its code, as in `one`; NONE if no table has it. */
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

#endif
