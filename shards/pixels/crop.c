/* A view of a JPEG (a box cut out, resized, a square window of that, perhaps mirrored) decoded straight into a batch.

   It answers only for plain, sound, upright baseline files, and then with the very pixels of the reference decoder:
   libjpeg's, resampled as Pillow's Image.crop().resize(BICUBIC) does it, integer for integer. For anything else, and at
   the first warning of libjpeg, it refuses. All entropy-coded data is read even where no pixel of it is needed, since
   a picture that is damaged outside the box is bad as well; inverse transform, upsampling and colours are computed for
   the box alone.

   Sources: Pillow's Resample.c (precompute_coeffs, normalize_coeffs_8bpc); libjpeg-turbo's libjpeg.txt; ITU-T T.81 B.2.
   Memory: reads body[0..size), writes 3 * side * side bytes an image; its own scratch grows with one row of the box. */

#include <math.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && !defined(PLAIN)
#define HAS_AVX2 1
#include <immintrin.h>
#endif

#include <jpeglib.h>

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "needs libjpeg-turbo 2.1 or newer"
#endif

#define MAX_PIXELS 178956970   /* as shards/pixels/image.py */
#define MAX_SEGMENTS 1000
#define PRECISION 22           /* bits of a coefficient, as Pillow's */
#define SPLIT 12
#define HALF (1 << (PRECISION - 1))
#define ROWS 4                 /* asked of libjpeg at once */
#define ASKEW 8                /* bytes by which rows for libjpeg miss a boundary: to one that lies on it, it writes past
                                  the cache, and reading it again would cost as much as decoding it */
#define SUPPORT 2.0            /* of the bicubic filter */

/* As shards.pixels.image.View: a box of the picture, the size that it is resized to, the window's place in that. */
typedef struct {
    int32_t x, y, width, height, to_width, to_height, left, top, mirrored;
} View;

/* --- the header ------------------------------------------------------------------------------------------------- */

static unsigned two(const uint8_t *s, int big) { return big ? s[0] << 8 | s[1] : s[1] << 8 | s[0]; }
static unsigned four(const uint8_t *s, int big) {
    return big ? two(s, 1) << 16 | two(s + 2, 1) : two(s + 2, 0) << 16 | two(s, 0);
}

/* Whether the first IFD of a TIFF structure says that the picture is stored upright, or nothing (image._ifd_value). */
static int upright(const uint8_t *s, size_t length) {
    if (length < 8 || s[0] != s[1] || (s[0] != 'I' && s[0] != 'M')) return 1;
    int big = s[0] == 'M';
    size_t at = four(s + 4, big);
    if (at > length || length - at < 2) return 1;
    unsigned count = two(s + at, big);
    at += 2;
    for (unsigned i = 0; i < count && i < 512; i++, at += 12) {
        if (length - at < 12) return length - at < 10; /* Pillow may or may not read a last, cut entry */
        unsigned kind = two(s + at + 2, big);
        if (two(s + at, big) != 0x0112 || (kind != 3 && kind != 4)) continue;
        unsigned value = kind == 3 ? two(s + at + 8, big) : four(s + at + 8, big);
        return value < 2 || value > 8;
    }
    return 1;
}

/* Whether an application's segment is one that Pillow reads without complaint and that leaves the pixels as they are. */
static int harmless(int marker, const uint8_t *s, int length, int *exifs) {
    if (marker == 0xE0) return length < 4 || memcmp(s, "JFIF", 4) || length >= 14;
    if (marker == 0xE1 && length >= 6 && !memcmp(s, "Exif\0\0", 6))
        return !(*exifs)++ && upright(s + 6, (size_t)length - 6);
    if (marker == 0xE2) /* a picture of several is another format; a profile has its number and their count */
        return (length < 4 || memcmp(s, "MPF\0", 4)) && (length < 12 || memcmp(s, "ICC_PROFILE\0", 12) || length >= 14);
    if (marker == 0xED) { /* Pillow walks through Photoshop's blocks, and falls at their end */
        if (length < 14 || memcmp(s, "Photoshop 3.0\0", 14)) return 1;
        size_t at = 14, end = (size_t)length;
        while (end - at >= 4 && !memcmp(s + at, "8BIM", 4)) {
            at += 6;
            if (at >= end) return 0;
            at += 1 + (size_t)s[at];
            at += at & 1;
            if (at > end || end - at < 4) return 0;
            size_t block = four(s + at, 1);
            at += 4;
            if (block > end - at) return 0;
            at += block;
            at += at & 1;
            if (at >= end) return 1;
        }
        return 1;
    }
    return marker != 0xEE || length < 5 || memcmp(s, "Adobe", 5) || length >= 12;
}

/* The frame's width and height; 0 if its kind is not one that is taken here. */
static int frame(const uint8_t *s, int length, int32_t *size) {
    if (length < 9 || s[0] != 8 || (s[5] != 1 && s[5] != 3) || length != 6 + 3 * s[5]) return 0;
    size[0] = (int32_t)two(s + 3, 1);
    size[1] = (int32_t)two(s + 1, 1);
    if (!size[0] || !size[1] || (int64_t)size[0] * size[1] > MAX_PIXELS) return 0;
    if (s[5] == 1) return s[7] == 0x11;
    /* 4:4:4, 4:2:2, 4:2:0: other samplings are not upsampled alike in all versions of libjpeg */
    return (s[7] == 0x11 || s[7] == 0x21 || s[7] == 0x22) && s[10] == 0x11 && s[13] == 0x11;
}

/* Width and height of a picture that `crop_views` may take, to size[2]; 0: it does not take it. Segments must follow one
   another without junk, and all components must come in one scan. */
static int header(const uint8_t *body, size_t size, int32_t *found) {
    size_t at = 2;
    int count = 0, exifs = 0;
    if (size < 4 || body[0] != 0xFF || body[1] != 0xD8) return 0;
    for (int i = 0; i < MAX_SEGMENTS && size - at >= 4 && body[at] == 0xFF; i++) {
        int marker = body[at + 1], length = (int)two(body + at + 2, 1) - 2;
        const uint8_t *s = body + at + 4;
        if (length < 0 || (size_t)length > size - at - 4) return 0;
        at += 4 + (size_t)length;
        if (marker == 0xC0 || marker == 0xC1) {
            if (count || !frame(s, length, found)) return 0;
            count = s[5];
        } else if (marker == 0xDA) {
            const uint8_t *band = s + length - 3;
            return count && length == 4 + 2 * count && s[0] == count && band[0] == 0 && band[1] == 63 && band[2] == 0;
        } else if (marker == 0xDB) {
            for (int n = 0; n < length; n += 65)
                if (length - n < 65 || s[n] > 3) return 0;
        } else if (marker >= 0xE0 && marker <= 0xEF) {
            if (!harmless(marker, s, length, &exifs)) return 0;
        } else if (marker != 0xC4 && marker != 0xDD && marker != 0xFE) {
            return 0;
        }
    }
    return 0;
}

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)
const char *crop_codec(void) { return "libjpeg-turbo " TEXT(LIBJPEG_TURBO_VERSION); }

void crop_sizes(int n, const uint8_t *const *bodies, const size_t *lengths, int32_t *sizes) {
    for (int i = 0; i < n; i++)
        if (!header(bodies[i], lengths[i], sizes + 2 * i)) sizes[2 * i] = sizes[2 * i + 1] = 0;
}

/* --- resampling ------------------------------------------------------------------------------------------------- */

/* Of one axis: each of `out` pixels is a sum over pixels of the box from first[i] on, as many as weights are not 0, at
   most `most`, which is even: the loops over them are alike for all pixels, for the processor's sake. */
typedef struct {
    int out, most;
    int low, high;             /* pixels of the box, of the axis, that are needed: [low, high) */
    int32_t *first, *last;     /* [first, last) */
    int32_t *weight;           /* [out][most] */
    int16_t *split;            /* [out][most / 4][2][4]: of four weights, what is above SPLIT bits, then what is below */
} Axis;

static double bicubic(double x) {
    const double a = -0.5;
    if (x < 0.0) x = -x;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
    if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
    return 0.0;
}

/* Pixels [start, start + out) of a box of `size` pixels that is resized to `to`. 0 without memory. */
static int axis(Axis *a, int size, int to, int start, int out, int mirrored) {
    const double scale = (double)size / to, stretch = scale < 1.0 ? 1.0 : scale, inverse = 1.0 / stretch;
    const double support = SUPPORT * stretch;
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
        for (int k = 0; k < count; k++) sum += w[k] = bicubic((k + low - centre + 0.5) * inverse);
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

/* --- decoding --------------------------------------------------------------------------------------------------- */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf refuse;
} Errors;

/* All that one image needs; lives outside of the function that longjmp returns to. */
typedef struct {
    struct jpeg_decompress_struct jpeg;
    Errors errors;
    Axis across, down;
    uint8_t *rows, *ring, *line;
} Work;

static void refuse(j_common_ptr jpeg) { longjmp(((Errors *)jpeg->err)->refuse, 1); }
static void heard(j_common_ptr jpeg, int severity) {
    if (severity < 0) refuse(jpeg);
}
static void silent(j_common_ptr jpeg) { (void)jpeg; }

/* Zeros, on a boundary. */
static void *reserve(Work *w, size_t bytes) {
    void *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) refuse((j_common_ptr)&w->jpeg);
    return memset(p, 0, bytes); /* beyond the pixels it is read as well, with a weight of 0 */
}

/* Pass over rows until the next one is number `row`. */
static void skip_to(Work *w, JDIMENSION row) {
    while (w->jpeg.output_scanline < row)
        if (!jpeg_skip_scanlines(&w->jpeg, row - w->jpeg.output_scanline)) refuse((j_common_ptr)&w->jpeg);
}

/* Decode the rest of the data, and see that nothing is left over but the end marker (as shards/pixels/jpeg.py, _Gauge). */
static int ends_well(Work *w) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    const struct jpeg_source_mgr *source = jpeg->src;
    if (jpeg->output_scanline < jpeg->output_height) {
        skip_to(w, jpeg->output_height - 1);
        JSAMPROW row = w->rows ? w->rows : w->ring; /* to skip the last row would be to skip the data as well */
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    if (jpeg->unread_marker) return jpeg->unread_marker == 0xD9;
    return source->bytes_in_buffer >= 2 && source->next_input_byte[0] == 0xFF && source->next_input_byte[1] == 0xD9;
}

static void begin(Work *w, const uint8_t *body, size_t size, const int32_t *expected) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, body, (unsigned long)size);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != (JDIMENSION)expected[0] || jpeg->image_height != (JDIMENSION)expected[1] ||
        (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_GRAYSCALE) || jpeg->progressive_mode ||
        jpeg->arith_code)
        refuse((j_common_ptr)jpeg);
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg_start_decompress(jpeg);
}

/* A ring holds as many rows as a row of the output is made of: of the picture if the pass down them is first, else of what
   the pass across made of those. */
static void decode(Work *w, const View *v, int side, uint8_t *out, Across *across, Down *down) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    const size_t edge = (size_t)side, plane = edge * edge;
    if (!axis(&w->across, v->width, v->to_width, v->left, side, v->mirrored) ||
        !axis(&w->down, v->height, v->to_height, v->top, side, 0))
        refuse((j_common_ptr)jpeg);
    /* One more column on either side: at the edges of what it decodes, libjpeg upsamples chroma without neighbours. */
    int left = v->x + w->across.low - 1, right = v->x + w->across.high + 1;
    if (left < 0) left = 0;
    if (right > (int)jpeg->output_width) right = (int)jpeg->output_width;
    JDIMENSION start = (JDIMENSION)left, width = (JDIMENSION)(right - left);
    /* Once cropped, libjpeg decides again how chroma is upsampled, and does it simply where 2 or fewer columns are left. */
    if (width > 4 && width < jpeg->output_width) jpeg_crop_scanline(jpeg, &start, &width);
    else start = 0, width = jpeg->output_width;

    /* Levels are rounded between the two passes, so their order shows: it is Pillow's. */
    const int surplus = v->height - v->to_height, down_first = surplus > 0 && surplus > 2 * (v->width - v->to_width);
    const int origin = (int)start - v->x, held = w->down.most + ROWS;
    const size_t row_bytes = (((size_t)width + (size_t)w->across.most) * 4 + ASKEW + 31) / 32 * 32;
    const size_t stride = down_first ? row_bytes : (3 * edge + 31) / 32 * 32;
    if (!down_first) w->rows = reserve(w, row_bytes * ROWS);
    w->ring = reserve(w, stride * (size_t)held);
    w->line = reserve(w, stride);

    int next = 0; /* row of the output */
    skip_to(w, (JDIMENSION)(v->y + w->down.low));
    for (int y = w->down.low; y < w->down.high;) {
        JSAMPROW rows[ROWS];
        const int wanted = w->down.high - y < ROWS ? w->down.high - y : ROWS;
        for (int i = 0; i < wanted; i++)
            rows[i] = ASKEW + (down_first ? w->ring + (size_t)((y + i) % held) * stride : w->rows + (size_t)i * row_bytes);
        const int got = (int)jpeg_read_scanlines(jpeg, rows, (JDIMENSION)wanted);
        if (!got) refuse((j_common_ptr)jpeg);
        for (int i = 0; i < got && !down_first; i++)
            across(&w->across, rows[i], origin, w->ring + (size_t)((y + i) % held) * stride, edge);
        for (y += got; next < side && w->down.last[next] <= y; next++) {
            down(&w->down, next, w->ring, held, stride, w->line);
            uint8_t *to = out + (size_t)next * edge;
            if (down_first) across(&w->across, w->line + ASKEW, origin, to, plane);
            else for (size_t c = 0; c < 3; c++) memcpy(to + c * plane, w->line + c * edge, edge);
        }
    }
    if (next != side || !ends_well(w)) refuse((j_common_ptr)jpeg);
}

static int fits(const View *v, const int32_t *size, int side) {
    return v->x >= 0 && v->y >= 0 && v->width > 0 && v->height > 0 && v->width <= size[0] - v->x &&
           v->height <= size[1] - v->y && v->left >= 0 && v->top >= 0 && v->to_width > 0 && v->to_height > 0 &&
           v->to_width <= 65500 && v->to_height <= 65500 && (int64_t)v->to_width * v->to_height <= MAX_PIXELS &&
           side <= v->to_width - v->left && side <= v->to_height - v->top;
}

/* Everything that may end in `refuse`. The work's memory is the caller's to free. */
static int attempt(
    Work *w, const uint8_t *body, size_t length, const int32_t *size, const View *v, int side, uint8_t *out, Across *across,
    Down *down
) {
    if (setjmp(w->errors.refuse)) return 0;
    begin(w, body, length, size);
    decode(w, v, side, out, across, down);
    return 1;
}

/* 1 if the view of the body was written to out[3][side][side]; 0 if it was refused, and out may hold anything. */
static int crop_view(const uint8_t *body, size_t length, const View *v, int side, uint8_t *out, Across *across, Down *down) {
    Work w;
    int32_t size[2];
    if (side < 1 || v->width < 1 || !header(body, length, size) || !fits(v, size, side)) return 0;
    memset(&w, 0, sizeof w);
    w.jpeg.err = jpeg_std_error(&w.errors.base);
    w.errors.base.error_exit = refuse;
    w.errors.base.emit_message = heard;
    w.errors.base.output_message = silent;
    int done = attempt(&w, body, length, size, v, side, out, across, down);
    jpeg_destroy_decompress(&w.jpeg);
    free(w.across.first);
    free(w.across.weight);
    free(w.across.split);
    free(w.down.first);
    free(w.down.weight);
    free(w.down.split);
    free(w.rows);
    free(w.ring);
    free(w.line);
    return done;
}

/* The views of n bodies to out[n][3][side][side]; done[i] says whether image i was taken. A view 0 wide is none. */
void crop_views(
    int n, const uint8_t *const *bodies, const size_t *lengths, const View *views, int side, uint8_t *out, uint8_t *done
) {
    Across *across = across_plain;
    Down *down = down_plain;
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        across = across_avx2;
        down = down_avx2;
    }
#endif
    size_t image = 3 * (size_t)side * (size_t)side;
    for (int i = 0; i < n; i++)
        done[i] = (uint8_t)crop_view(bodies[i], lengths[i], views + i, side, out + (size_t)i * image, across, down);
}
