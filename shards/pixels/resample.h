/* Resampling as Pillow does it, bicubic or by areas, integer for integer: weights of 22 bits, rounded to levels after each
   axis.

   Source: Pillow's Resample.c (precompute_coeffs, normalize_coeffs_8bpc). */

#ifndef RESAMPLE_H
#define RESAMPLE_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__x86_64__) && !defined(PLAIN)
#define HAS_AVX2 1
#include <immintrin.h>
#endif

#define PRECISION 22           /* bits of a coefficient, as Pillow's */
#define SPLIT 12
#define HALF (1 << (PRECISION - 1))

/* Of one axis: each of `out` pixels is a sum over pixels of the box from first[i] on, as many as weights are not 0, at
   most `most`, which is even: the loops over them are alike for all pixels, for the processor's sake. */
typedef struct {
    int out, most;
    int low, high;             /* pixels of the box, of the axis, that are needed: [low, high) */
    int32_t *first, *last;     /* [first, last) */
    int32_t *weight;           /* [out][most] */
    int16_t *split;            /* [out][most / 4][2][4]: of four weights, what is above SPLIT bits, then what is below */
} Axis;

typedef struct {
    double (*weight)(double x);
    double support;            /* beyond it on either side, weights are 0 */
} Filter;

static double bicubic(double x) {
    const double a = -0.5;
    if (x < 0.0) x = -x;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

static double area(double x) { return x > -0.5 && x <= 0.5; }

static const Filter BICUBIC = {bicubic, 2.0}, AREA = {area, 0.5};

/* Pixels [start, start + out) of a box of `size` pixels that is resized to `to`. 0 without memory. */
static int axis(Axis *a, const Filter *filter, int size, int to, int start, int out, int mirrored) {
    const double scale = (double)size / to, stretch = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / stretch;
    const double support = filter->support * stretch;
    const int room = (int)ceil(support) * 2 + 4;
    a->out = out;
    a->first = malloc((size_t)out * 2 * sizeof(int32_t));
    a->weight = malloc((size_t)out * (size_t)room * sizeof(int32_t));
    a->split = malloc((size_t)out * (size_t)room * 2 * sizeof(int16_t));
    double *w = malloc((size_t)room * sizeof(double));
    if (!a->first || !a->weight || !a->split || !w) {
        free(w);
        return 0;
    }
    a->last = a->first + out;
    a->most = 0;
    a->low = size;
    a->high = 0;
    for (int i = 0; i < out; i++) {
        double centre = (start + i + 0.5) * scale;
        int low = (int)(centre - support + 0.5), high = (int)(centre + support + 0.5), at = mirrored ? out - 1 - i : i;
        a->first[at] = low = low < 0 ? 0 : low;
        a->last[at] = high = high > size ? size : high;
        if (low < a->low) a->low = low;
        if (high > a->high) a->high = high;
        if (high - low > a->most) a->most = high - low;
    }
    a->most = (a->most + 3) & ~3;
    for (int i = 0; i < out; i++) {
        int at = mirrored ? out - 1 - i : i, low = a->first[at], count = a->last[at] - low;
        double centre = (start + i + 0.5) * scale, sum = 0.0;
        int32_t *weight = a->weight + (ptrdiff_t)at * a->most;
        int16_t *split = a->split + (ptrdiff_t)at * a->most * 2;
        for (int k = 0; k < count; k++) sum += w[k] = filter->weight((k + low - centre + 0.5) * inverse);
        for (int k = 0; k < a->most; k++) {
            double share = k < count ? (sum != 0.0 ? w[k] / sum : w[k]) * (1 << PRECISION) : 0.0;
            weight[k] = (int32_t)(share < 0 ? share - 0.5 : share + 0.5);
            split[k / 4 * 8 + k % 4] = (int16_t)(weight[k] >> SPLIT);
            split[k / 4 * 8 + k % 4 + 4] = (int16_t)(weight[k] & ((1 << SPLIT) - 1));
        }
    }
    free(w);
    return 1;
}

/* One row of 4-byte pixels, the first of them number `origin` of the box, to three rows of a->out bytes that are `apart`.
   The row is read a->most pixels beyond those that count. */
typedef void Across(const Axis *a, const uint8_t *row, int origin, uint8_t *to, size_t apart);

/* Pixel i of the axis for each of `stride` columns, a multiple of 32, of rows of which number n lies in ring[n % held]. */
typedef void Down(const Axis *a, int i, const uint8_t *ring, int held, size_t stride, uint8_t *to);

static inline uint8_t level(int32_t sum) {
    sum >>= PRECISION;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

static void across_from(const Axis *a, int i, const uint8_t *row, int origin, uint8_t *to, size_t apart) {
    for (; i < a->out; i++) {
        const uint8_t *p = row + 4 * (ptrdiff_t)(a->first[i] - origin);
        const int32_t *w = a->weight + (ptrdiff_t)i * a->most;
        int32_t red = HALF, green = HALF, blue = HALF;
        for (int k = 0; k < a->most; k++) {
            red += p[4 * k] * w[k];
            green += p[4 * k + 1] * w[k];
            blue += p[4 * k + 2] * w[k];
        }
        to[i] = level(red);
        to[apart + (size_t)i] = level(green);
        to[2 * apart + (size_t)i] = level(blue);
    }
}

static void across_plain(const Axis *a, const uint8_t *row, int origin, uint8_t *to, size_t apart) {
    across_from(a, 0, row, origin, to, apart);
}

static void down_plain(const Axis *a, int i, const uint8_t *ring, int held, size_t stride, uint8_t *to) {
    const int32_t *w = a->weight + (ptrdiff_t)i * a->most;
    for (size_t at = 0; at < stride; at += 32) {
        int32_t sums[32];
        for (int x = 0; x < 32; x++) sums[x] = HALF;
        for (int k = 0; k < a->last[i] - a->first[i]; k++) {
            const uint8_t *row = ring + (size_t)((a->first[i] + k) % held) * stride + at;
            for (int x = 0; x < 32; x++) sums[x] += row[x] * w[k];
        }
        for (int x = 0; x < 32; x++) to[at + (size_t)x] = level(sums[x]);
    }
}

#ifdef HAS_AVX2
#define AVX2 __attribute__((target("avx2")))
#define INLINE static inline __attribute__((always_inline))

/* Red, green, blue and nothing of pixel i. Four pixels of the row at once: products of 8 bits with the two halves of a
   weight, each of which has less than 16. */
AVX2 INLINE __m128i sum_avx2(const Axis *a, int i, int most, const uint8_t *row, int origin) {
    const __m256i couple = _mm256_setr_epi8(
        0, -1, 4, -1, 1, -1, 5, -1, 2, -1, 6, -1, 3, -1, 7, -1, 8, -1, 12, -1, 9, -1, 13, -1, 10, -1, 14, -1, 11, -1, 15, -1
    );
    const __m256i high = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1), low = _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3);
    const uint8_t *p = row + 4 * (ptrdiff_t)(a->first[i] - origin);
    const int16_t *w = a->split + (ptrdiff_t)i * most * 2;
    __m256i above = _mm256_setzero_si256(), below = above;
    for (int k = 0; k < most; k += 4) {
        __m256i pixels = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(p + 4 * k)));
        __m256i weights = _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(w + 2 * k)));
        pixels = _mm256_shuffle_epi8(pixels, couple);
        above = _mm256_add_epi32(above, _mm256_madd_epi16(pixels, _mm256_permutevar8x32_epi32(weights, high)));
        below = _mm256_add_epi32(below, _mm256_madd_epi16(pixels, _mm256_permutevar8x32_epi32(weights, low)));
    }
    __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(above, SPLIT), below);
    __m128i rgb = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    return _mm_srai_epi32(_mm_add_epi32(rgb, _mm_set1_epi32(HALF)), PRECISION);
}

AVX2 INLINE void across_most(const Axis *a, int most, const uint8_t *row, int origin, uint8_t *to, size_t apart) {
    const __m128i planes = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, -1, -1, -1, -1);
    int i = 0;
    for (; i + 4 <= a->out; i += 4) {
        __m128i left = _mm_packs_epi32(sum_avx2(a, i, most, row, origin), sum_avx2(a, i + 1, most, row, origin));
        __m128i right = _mm_packs_epi32(sum_avx2(a, i + 2, most, row, origin), sum_avx2(a, i + 3, most, row, origin));
        __m128i rgb = _mm_shuffle_epi8(_mm_packus_epi16(left, right), planes);
        _mm_storeu_si32(to + i, rgb);
        _mm_storeu_si32(to + apart + i, _mm_srli_si128(rgb, 4));
        _mm_storeu_si32(to + 2 * apart + i, _mm_srli_si128(rgb, 8));
    }
    across_from(a, i, row, origin, to, apart);
}

AVX2 static void across_avx2(const Axis *a, const uint8_t *row, int origin, uint8_t *to, size_t apart) {
    switch (a->most) { /* numbers that the compiler knows spare it the loop */
    case 4: across_most(a, 4, row, origin, to, apart); break;
    case 8: across_most(a, 8, row, origin, to, apart); break;
    case 12: across_most(a, 12, row, origin, to, apart); break;
    default: across_most(a, a->most, row, origin, to, apart);
    }
}

AVX2 static void down_avx2(const Axis *a, int i, const uint8_t *ring, int held, size_t stride, uint8_t *to) {
    const int32_t *w = a->weight + (ptrdiff_t)i * a->most;
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (size_t at = 0; at < stride; at += 32) {
        __m256i sum[4];
        for (int n = 0; n < 4; n++) sum[n] = _mm256_set1_epi32(HALF);
        for (int k = 0; k < a->last[i] - a->first[i]; k++) {
            const uint8_t *row = ring + (size_t)((a->first[i] + k) % held) * stride + at;
            __m256i weight = _mm256_set1_epi32(w[k]);
            for (int n = 0; n < 4; n++) {
                __m256i pixels = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)(row + 8 * n)));
                sum[n] = _mm256_add_epi32(sum[n], _mm256_mullo_epi32(pixels, weight));
            }
        }
        for (int n = 0; n < 4; n++) sum[n] = _mm256_srai_epi32(sum[n], PRECISION);
        __m256i levels = _mm256_packus_epi16(_mm256_packs_epi32(sum[0], sum[1]), _mm256_packs_epi32(sum[2], sum[3]));
        _mm256_storeu_si256((__m256i *)(to + at), _mm256_permutevar8x32_epi32(levels, in_order));
    }
}
#endif

#endif
