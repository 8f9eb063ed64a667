/* A view of a JPEG (a box cut out, resized, a square window of that, perhaps mirrored) decoded straight into a batch; or
   the whole of it, made smaller.

   It answers only for plain, sound, upright baseline files, and then with the very pixels of the reference decoder:
   libjpeg's, resampled as Pillow's Image.crop().resize(BICUBIC or BOX) does it, integer for integer. For anything else,
   and at the first warning of libjpeg, it refuses. All entropy-coded data is read even where no pixel of it is needed,
   since a picture that is damaged outside the box is bad as well; inverse transform, upsampling and colours are
   computed for the box alone.

   Sources: libjpeg-turbo's libjpeg.txt; ITU-T T.81 B.2.
   Memory: reads body[0..size), writes 3 * side * side bytes an image; its own scratch grows with one row of the box and
   with the largest body. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include "huffman.h"
#include "resample.h"

#if !defined(LIBJPEG_TURBO_VERSION_NUMBER) || LIBJPEG_TURBO_VERSION_NUMBER < 2001000
#error "needs libjpeg-turbo 2.1 or newer"
#endif

#define MAX_PIXELS 178956970   /* as shards/pixels/image.py */
#define MAX_SEGMENTS 1000
#define ROWS 4                 /* asked of libjpeg at once */
#define ASKEW 8                /* bytes by which rows for libjpeg miss a boundary: to one that lies on it, it writes past
                                  the cache, and reading it again would cost as much as decoding it */

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

/* --- decoding --------------------------------------------------------------------------------------------------- */

typedef struct {
    struct jpeg_error_mgr base;
    jmp_buf refuse;
} Errors;

/* All that one image needs; lives outside of the function that longjmp returns to. */
typedef struct {
    struct jpeg_decompress_struct jpeg; /* the first, so that who has it has the work */
    Errors errors;
    Scan scan;                 /* scan.all is 0 where libjpeg's own Huffman decoder is at work */
    Axis across, down;
    uint8_t *rows, *ring, *line;
} Work;

/* What is wanted of a picture: a view of it, in pixels of the picture decoded at 1/`part` of its size. */
typedef struct {
    View view;
    int wide, high;            /* of the window */
    int part;                  /* 1, 2, 4, 8 */
    const Filter *filter;
} Wanted;

/* What images have in common. Without tables, libjpeg's own Huffman decoder is used. */
typedef struct {
    Across *across;
    Down *down;
    Tables *tables;
    uint8_t *scratch;          /* of the largest body and OVERRUN bytes */
} Tools;

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
    if (w->scan.all) return scan_ends_well(&w->scan, jpeg);
    if (jpeg->output_scanline < jpeg->output_height) {
        skip_to(w, jpeg->output_height - 1);
        JSAMPROW row = w->rows ? w->rows : w->ring; /* to skip the last row would be to skip the data as well */
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    if (jpeg->unread_marker) return jpeg->unread_marker == 0xD9;
    return source->bytes_in_buffer >= 2 && source->next_input_byte[0] == 0xFF && source->next_input_byte[1] == 0xD9;
}

/* How libjpeg's struct jpeg_entropy_decoder begins. */
typedef struct {
    void (*start_pass)(j_decompress_ptr);
    boolean (*decode_mcu)(j_decompress_ptr, JBLOCKROW *);
} Entropy;

static boolean decode_mcu(j_decompress_ptr jpeg, JBLOCKROW *blocks) {
    if (!scan_mcu(&((Work *)jpeg)->scan, jpeg, blocks)) refuse((j_common_ptr)jpeg);
    return TRUE;
}

static void begin(
    Work *w, const uint8_t *body, size_t size, const int32_t *expected, int part, const Tools *tools
) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    jpeg_create_decompress(jpeg);
    jpeg_mem_src(jpeg, body, (unsigned long)size);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != (JDIMENSION)expected[0] || jpeg->image_height != (JDIMENSION)expected[1] ||
        (jpeg->jpeg_color_space != JCS_YCbCr && jpeg->jpeg_color_space != JCS_GRAYSCALE) || jpeg->progressive_mode ||
        jpeg->arith_code)
        refuse((j_common_ptr)jpeg);
    jpeg->out_color_space = JCS_EXT_RGBX;
    jpeg->scale_num = 1;
    jpeg->scale_denom = (unsigned)part;
    jpeg_start_decompress(jpeg);
    if (!tools->tables || !scan_begin(&w->scan, tools->tables, jpeg, body, size, tools->scratch)) return;
    ((Entropy *)jpeg->entropy)->decode_mcu = decode_mcu;
}

/* A ring holds as many rows as a row of the output is made of: of the picture if the pass down them is first, else of what
   the pass across made of those. */
static void decode(Work *w, const Wanted *wanted, uint8_t *out, const Tools *tools) {
    struct jpeg_decompress_struct *jpeg = &w->jpeg;
    const View *v = &wanted->view;
    const size_t edge = (size_t)wanted->wide, plane = edge * (size_t)wanted->high;
    if (!axis(&w->across, wanted->filter, v->width, v->to_width, v->left, wanted->wide, v->mirrored) ||
        !axis(&w->down, wanted->filter, v->height, v->to_height, v->top, wanted->high, 0))
        refuse((j_common_ptr)jpeg);
    /* One more column on either side: at the edges of what it decodes, libjpeg upsamples chroma without neighbours. */
    int left = v->x + w->across.low - 1, right = v->x + w->across.high + 1;
    if (left < 0) left = 0;
    if (right > (int)jpeg->output_width) right = (int)jpeg->output_width;
    JDIMENSION start = (JDIMENSION)left, width = (JDIMENSION)(right - left);
    /* Once cropped, libjpeg decides again how chroma is upsampled, and does it simply where 2 or fewer columns are left. */
    if (width > 4 && width < jpeg->output_width) jpeg_crop_scanline(jpeg, &start, &width);
    else start = 0, width = jpeg->output_width;
    const JDIMENSION unit = (JDIMENSION)(8 / wanted->part * jpeg->max_h_samp_factor);
    w->scan.from = (int)(start / unit);
    w->scan.to = (int)((start + width + unit - 1) / unit);

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
        const int asked = w->down.high - y < ROWS ? w->down.high - y : ROWS;
        for (int i = 0; i < asked; i++)
            rows[i] = ASKEW + (down_first ? w->ring + (size_t)((y + i) % held) * stride : w->rows + (size_t)i * row_bytes);
        const int got = (int)jpeg_read_scanlines(jpeg, rows, (JDIMENSION)asked);
        if (!got) refuse((j_common_ptr)jpeg);
        for (int i = 0; i < got && !down_first; i++)
            tools->across(&w->across, rows[i], origin, w->ring + (size_t)((y + i) % held) * stride, edge);
        for (y += got; next < wanted->high && w->down.last[next] <= y; next++) {
            tools->down(&w->down, next, w->ring, held, stride, w->line);
            uint8_t *to = out + (size_t)next * edge;
            if (down_first) tools->across(&w->across, w->line + ASKEW, origin, to, plane);
            else for (size_t c = 0; c < 3; c++) memcpy(to + c * plane, w->line + c * edge, edge);
        }
    }
    if (next != wanted->high || !ends_well(w)) refuse((j_common_ptr)jpeg);
}

/* `size` is that of the whole picture. */
static int fits(const Wanted *wanted, const int32_t *size) {
    const View *v = &wanted->view;
    const int width = (size[0] + wanted->part - 1) / wanted->part, height = (size[1] + wanted->part - 1) / wanted->part;
    return wanted->wide > 0 && wanted->high > 0 && v->x >= 0 && v->y >= 0 && v->width > 0 && v->height > 0 &&
           v->width <= width - v->x && v->height <= height - v->y && v->left >= 0 && v->top >= 0 && v->to_width > 0 &&
           v->to_height > 0 && v->to_width <= 65500 && v->to_height <= 65500 &&
           (int64_t)v->to_width * v->to_height <= MAX_PIXELS && wanted->wide <= v->to_width - v->left &&
           wanted->high <= v->to_height - v->top;
}

/* Everything that may end in `refuse`. The work's memory is the caller's to free. */
static int attempt(
    Work *w, const uint8_t *body, size_t length, const int32_t *size, const Wanted *wanted, uint8_t *out,
    const Tools *tools
) {
    if (setjmp(w->errors.refuse)) return 0;
    begin(w, body, length, size, wanted->part, tools);
    decode(w, wanted, out, tools);
    return 1;
}

/* 1 if what is wanted of the body was written to out[3][high][wide]; 0 if it was refused, and out may hold anything. */
static int crop_view(const uint8_t *body, size_t length, const Wanted *wanted, uint8_t *out, const Tools *tools) {
    Work w;
    int32_t size[2];
    if (wanted->view.width < 1 || !header(body, length, size) || !fits(wanted, size)) return 0;
    memset(&w, 0, sizeof w);
    w.jpeg.err = jpeg_std_error(&w.errors.base);
    w.errors.base.error_exit = refuse;
    w.errors.base.emit_message = heard;
    w.errors.base.output_message = silent;
    int done = attempt(&w, body, length, size, wanted, out, tools);
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

/* --- the library's calls ---------------------------------------------------------------------------------------- */

static int fast;               /* whether `crop_fast` found that huffman.h may be used */
static _Thread_local Tables tables;

/* For bodies of at most `largest` bytes; `scratch` is to be freed. */
static Tools tools_for(size_t largest) {
    Tools tools = {across_plain, down_plain, NULL, NULL};
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2")) {
        tools.across = across_avx2;
        tools.down = down_avx2;
    }
#endif
    if (fast && (tools.scratch = calloc(1, largest + OVERRUN))) tools.tables = &tables;
    return tools;
}

/* The views of n bodies to out[n][3][side][side]; done[i] says whether image i was taken. A view 0 wide is none. */
void crop_views(
    int n, const uint8_t *const *bodies, const size_t *lengths, const View *views, int side, uint8_t *out, uint8_t *done
) {
    size_t image = 3 * (size_t)side * (size_t)side, largest = 0;
    for (int i = 0; i < n; i++)
        if (lengths[i] > largest) largest = lengths[i];
    Tools tools = tools_for(largest);
    for (int i = 0; i < n; i++) {
        const Wanted wanted = {views[i], side, side, 1, &BICUBIC};
        done[i] = (uint8_t)crop_view(bodies[i], lengths[i], &wanted, out + (size_t)i * image, &tools);
    }
    free(tools.scratch);
}

/* A whole picture, decoded at 1/part of its size, to out[3][high][wide], each pixel the average of the area that it covers.
   Returns whether it was taken. */
int crop_shrink(const uint8_t *body, size_t length, int part, int wide, int high, uint8_t *out) {
    int32_t size[2];
    if ((part != 1 && part != 2 && part != 4 && part != 8) || !header(body, length, size)) return 0;
    const View whole = {0, 0, (size[0] + part - 1) / part, (size[1] + part - 1) / part, wide, high, 0, 0, 0};
    const Wanted wanted = {whole, wide, high, part, &AREA};
    Tools tools = tools_for(length);
    const int done = crop_view(body, length, &wanted, out, &tools);
    free(tools.scratch);
    return done;
}

#define TRIED_WIDE 83
#define TRIED_HIGH 61

/* A picture of noise, which fills all 64 coefficients, as a JPEG with restart markers; 0 if it is not to be had. */
static unsigned long noise(uint8_t **body, int parts) {
    struct jpeg_compress_struct jpeg;
    struct jpeg_error_mgr errors;
    uint8_t row[3 * TRIED_WIDE];
    uint32_t state = 1;
    unsigned long size = 0;
    *body = NULL;
    memset(&jpeg, 0, sizeof jpeg);
    jpeg.err = jpeg_std_error(&errors); /* without memory, this ends the process */
    jpeg_create_compress(&jpeg);
    jpeg_mem_dest(&jpeg, body, &size);
    jpeg.image_width = TRIED_WIDE;
    jpeg.image_height = TRIED_HIGH;
    jpeg.input_components = parts;
    jpeg.in_color_space = parts == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&jpeg);
    jpeg_set_quality(&jpeg, parts == 3 ? 92 : 40, TRUE);
    jpeg.restart_interval = 5;
    jpeg_start_compress(&jpeg, TRUE);
    while (jpeg.next_scanline < jpeg.image_height) {
        for (int i = 0; i < parts * TRIED_WIDE; i++) row[i] = (uint8_t)((state = state * 1664525u + 1013904223u) >> 24);
        JSAMPROW rows[1] = {row};
        jpeg_write_scanlines(&jpeg, rows, 1);
    }
    jpeg_finish_compress(&jpeg);
    jpeg_destroy_compress(&jpeg);
    return size;
}

/* Use huffman.h from now on if this build of libjpeg has its decoder where we look for it, and gives the same pixels with
   ours. Called once, before anything else. Returns whether it is used. */
int crop_fast(void) {
#if LIBJPEG_TURBO_VERSION_NUMBER < 3002000
    enum { SIDE = 16 };
    static uint8_t plain[3 * SIDE * SIDE], ours[3 * SIDE * SIDE];
    const View views[] = {{37, 21, 29, 23, SIDE, SIDE, 0, 0, 0}, {0, 0, TRIED_WIDE, TRIED_HIGH, SIDE, SIDE, 0, 0, 1}};
    int same = 1;
    for (int i = 0; i < 8 && same; i++) {
        uint8_t *body, found[2] = {0, 0};
        const unsigned long length = noise(&body, i < 4 ? 3 : 1);
        const uint8_t *const bodies[] = {body};
        const size_t lengths[] = {length - (i & 2)}; /* whole, and without its end */
        fast = 0;
        crop_views(1, bodies, lengths, views + i % 2, SIDE, plain, found);
        fast = 1;
        crop_views(1, bodies, lengths, views + i % 2, SIDE, ours, found + 1);
        crop_views(1, bodies, lengths, views + i % 2, SIDE, ours, found + 1); /* its tables are made by now */
        same = found[0] == !(i & 2) && found[1] == found[0] && (!found[0] || !memcmp(plain, ours, sizeof ours));
        free(body);
    }
    fast = same;
#endif
    return fast;
}
