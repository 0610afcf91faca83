/* The product of a matrix of weights with inputs on levels, on one thread of a CPU with AVX-512 VNNI.
 *
 * levels.py explains the arithmetic: every weight is three digits of one byte, sums of products of bytes
 * are exact integers, and a few floating-point operations make a number of the three sums. The
 * operations and their order are those of `FixedPoint` in levels.py, so the two agree in every bit.
 *
 * The instruction multiplies bytes without sign by bytes with sign, in groups of four. So the digits are
 * stored plus 128, and one row of ones gives the sum of the inputs, which is then subtracted 128 times.
 * Sums may wrap around, because their differences fit into 32 bits.
 *
 * A network with one hidden layer can be computed at once: then the hidden layer stays in the cache of
 * the first level.
 *
 * Prepared form: digits [feature / 4][row][4], where the rows are those of the high, middle and low
 * digits, a row of ones, and rows of zeros up to whole vectors. Numbers are read as they are stored,
 * [sample][feature].
 */

#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vnni")
#include <immintrin.h>
#include <math.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

enum {
    LANES = 16, /* numbers of 32 bits per vector */
    GROUP = 8,  /* samples whose sums are kept in registers at the same time */
    WIDE = 3,   /* vectors of rows of which the same holds: 24 of 32 registers */
    LARGEST = 0x7F0000, /* the largest weight in a row, in units */
    MIDDLES = 0x808080,
};

/* The parts of the prepared form; all but the digits are numbers of 32 or 64 bits. */
struct form {
    int64_t width;  /* rows of digits, in whole vectors */
    int64_t padded; /* rows of the matrix, in whole vectors */
    uint8_t *digits;
    double *sums; /* of a row's weights in units */
    float *unit, *scale, *shift;
    int32_t *products; /* [GROUP][width], and a vector that is read and not used */
    float *values;     /* [GROUP][padded] */
};

/* A second layer after a ReLU: outputs = weights relu(product + bias) + shift. */
struct second {
    int64_t outputs;
    const float *bias;    /* of the first layer [row] */
    const float *weights; /* [row][LANES], with zeros beyond the outputs, at most LANES */
    const float *shift;   /* [LANES] */
};

static int64_t whole(int64_t rows)
{
    return (rows + LANES - 1) / LANES * LANES;
}

/* Finds the parts in `memory` and returns how many bytes they take. */
static int64_t lay_out(struct form *f, char *memory, int64_t rows, int64_t features)
{
    f->width = whole(3 * rows + 1);
    f->padded = whole(rows);
    char *at = memory;
    f->digits = (uint8_t *)at, at += f->width * features;
    f->sums = (double *)at, at += f->padded * 8;
    f->unit = (float *)at, at += f->padded * 4;
    f->scale = (float *)at, at += f->padded * 4;
    f->shift = (float *)at, at += f->padded * 4;
    f->products = (int32_t *)at, at += (GROUP * f->width + LANES) * 4;
    f->values = (float *)at, at += GROUP * f->padded * 4;
    return at - memory;
}

/* The largest magnitude in a row, or a NaN if one of its weights is not finite. */
static float largest_of(const float *row, int64_t features)
{
    float largest = 0x1p-100f;
    int finite = 1;
    for (int64_t k = 0; k < features; k++) {
        float size = fabsf(row[k]);
        largest = size > largest ? size : largest;
        finite &= size < INFINITY;
    }
    return finite ? largest : NAN;
}

/* Splits a row into digits and puts them at `to`; returns the sum of its weights in units. */
static int64_t split(const float *row, int64_t features, float by, uint32_t *to, int64_t rows, int64_t width)
{
    const __m128i order = _mm_setr_epi8(2, 6, 10, 14, 1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1);
    int64_t sum = 0;
    for (int64_t k = 0; k < features; k += 4, to += width) {
        __m128i units = _mm_cvtps_epi32(_mm_mul_ps(_mm_loadu_ps(row + k), _mm_set1_ps(by)));
        int32_t four[4];
        _mm_storeu_si128((__m128i *)four, units);
        sum += (int64_t)four[0] + four[1] + four[2] + four[3];
        /* The bytes of n + sum_k 128 * 256^k are the digits of n, each plus 128. */
        units = _mm_shuffle_epi8(_mm_add_epi32(units, _mm_set1_epi32(MIDDLES)), order);
        to[0] = (uint32_t)_mm_extract_epi32(units, 0);
        to[rows] = (uint32_t)_mm_extract_epi32(units, 1);
        to[2 * rows] = (uint32_t)_mm_extract_epi32(units, 2);
    }
    return sum;
}

/* products[sample][row] for the samples of a group and `count` vectors of rows. */
INLINE void multiply(const int count, const int8_t *const *numbers, int64_t features,
    const uint8_t *digits, int64_t width, int32_t *products)
{
    __m512i sums[GROUP][WIDE];
#pragma GCC unroll 8
    for (int s = 0; s < GROUP; s++)
#pragma GCC unroll 3
        for (int v = 0; v < count; v++) sums[s][v] = _mm512_setzero_si512();
    for (int64_t k = 0; k < features; k += 4) {
        __m512i rows[WIDE];
#pragma GCC unroll 3
        for (int v = 0; v < count; v++) rows[v] = _mm512_loadu_si512(digits + k * width + 4 * LANES * v);
#pragma GCC unroll 8
        for (int s = 0; s < GROUP; s++) {
            int32_t four;
            memcpy(&four, numbers[s] + k, 4);
            __m512i inputs = _mm512_set1_epi32(four);
#pragma GCC unroll 3
            for (int v = 0; v < count; v++) sums[s][v] = _mm512_dpbusd_epi32(sums[s][v], rows[v], inputs);
        }
    }
#pragma GCC unroll 8
    for (int s = 0; s < GROUP; s++)
#pragma GCC unroll 3
        for (int v = 0; v < count; v++)
            _mm512_storeu_si512(products + s * width + LANES * v, sums[s][v]);
}

/* All products of a group of samples. */
static void multiply_all(const struct form *f, const int8_t *const *numbers, int64_t features)
{
    int64_t at = 0, left = f->width / LANES;
    while (left > 0) {
        /* Two times 2 vectors take less time than 3 and 1. */
        const int64_t count = left == 2 || left == 4 ? 2 : left == 1 ? 1 : WIDE;
        const uint8_t *digits = f->digits + 4 * at;
        int32_t *products = f->products + at;
        if (count == WIDE) multiply(WIDE, numbers, features, digits, f->width, products);
        if (count == 2) multiply(2, numbers, features, digits, f->width, products);
        if (count == 1) multiply(1, numbers, features, digits, f->width, products);
        at += count * LANES, left -= count;
    }
}

INLINE __m512 number(const int32_t *products, __m512i middles)
{
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_loadu_si512(products), middles));
}

/* values[row] of one sample from its three products per row. */
static void combine(const struct form *f, const int32_t *products, int64_t rows, float *values)
{
    const __m512i middles = _mm512_set1_epi32((int32_t)((uint32_t)products[3 * rows] << 7));
    const __m512 base = _mm512_set1_ps(256);
    for (int64_t row = 0; row < rows; row += LANES) {
        __m512 sum = _mm512_mul_ps(number(products + row, middles), base);
        sum = _mm512_mul_ps(_mm512_add_ps(sum, number(products + rows + row, middles)), base);
        sum = _mm512_add_ps(sum, number(products + 2 * rows + row, middles));
        sum = _mm512_mul_ps(sum, _mm512_loadu_ps(f->scale + row));
        _mm512_storeu_ps(values + row, _mm512_add_ps(sum, _mm512_loadu_ps(f->shift + row)));
    }
}

/* Writes out[row][sample] for eight rows of values[sample][row]. */
static void transpose(const float *values, int64_t padded, float *out, int64_t stride)
{
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i++) a[i] = _mm256_loadu_ps(values + i * padded);
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            a[i + 2 * j] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0x44);
            a[i + 2 * j + 1] = _mm256_shuffle_ps(b[i + j], b[i + j + 2], 0xEE);
        }
    for (int i = 0; i < 4; i++) {
        _mm256_storeu_ps(out + i * stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x20));
        _mm256_storeu_ps(out + (i + 4) * stride, _mm256_permute2f128_ps(a[i], a[i + 4], 0x31));
    }
}

/* Writes out[output][sample] for `count` samples of a group. Sums go over the rows in ascending order. */
static void second_layer(const struct form *f, const struct second *s, int64_t rows, int64_t count,
    float *out, int64_t stride)
{
    __m512 sums[GROUP];
    for (int i = 0; i < GROUP; i++) sums[i] = _mm512_setzero_ps();
    for (int64_t row = 0; row < rows; row++) {
        const __m512 weights = _mm512_loadu_ps(s->weights + row * LANES);
#pragma GCC unroll 8
        for (int i = 0; i < GROUP; i++) {
            const float value = f->values[i * f->padded + row] + s->bias[row];
            /* NaN stays NaN. */
            const __m512 hidden = _mm512_set1_ps(value < 0 ? 0 : value);
            sums[i] = _mm512_fmadd_ps(hidden, weights, sums[i]);
        }
    }
    float outputs[GROUP][LANES];
    for (int i = 0; i < GROUP; i++)
        _mm512_storeu_ps(outputs[i], _mm512_add_ps(sums[i], _mm512_loadu_ps(s->shift)));
    for (int64_t o = 0; o < s->outputs; o++)
        for (int64_t i = 0; i < count; i++) out[o * stride + i] = outputs[i][o];
}

__attribute__((target("arch=x86-64"))) int levels_run_here(void)
{
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

/* Tells compiled_levels.py whether it has the same structure. */
int64_t levels_layout(void)
{
    return (int64_t)sizeof(struct second);
}

int64_t levels_bytes(int64_t rows, int64_t features)
{
    struct form f;
    return lay_out(&f, 0, rows, features);
}

/* Prepares matrix[row][feature], whose rows are `stride` apart. `features` is a multiple of 4. */
void levels_prepare(int64_t rows, int64_t features, const float *matrix, int64_t stride, char *memory)
{
    struct form f;
    memset(memory, 0, (size_t)lay_out(&f, memory, rows, features));
    for (int64_t k = 0; k < features; k += 4) memset(f.digits + k * f.width + 12 * rows, 1, 4);
    for (int64_t row = 0; row < rows; row++) {
        const float *weights = matrix + row * stride;
        float largest = largest_of(weights, features), by = 1 / largest * LARGEST;
        f.unit[row] = largest / LARGEST;
        f.sums[row] = (double)split(weights, features, by, (uint32_t *)f.digits + row, rows, f.width);
    }
}

/* out[row][sample], with rows `out_stride` apart: the product with (numbers + offset) * step, or the
 * outputs of the second layer if there is one. */
void levels_compute(int64_t rows, int64_t features, char *memory, const int8_t *numbers, int64_t stride,
    int64_t samples, double step, double offset, float *out, int64_t out_stride, const struct second *then)
{
    struct form f;
    lay_out(&f, memory, rows, features);
    for (int64_t row = 0; row < rows; row++) {
        f.scale[row] = f.unit[row] * (float)step;
        f.shift[row] = (float)(f.scale[row] * offset * f.sums[row]);
    }
    for (int64_t first = 0; first < samples; first += GROUP) {
        const int8_t *group[GROUP];
        int64_t count = samples - first < GROUP ? samples - first : GROUP;
        for (int s = 0; s < GROUP; s++)
            group[s] = numbers + stride * (first + (s < count ? s : count - 1));
        multiply_all(&f, group, features);
        for (int s = 0; s < GROUP; s++)
            combine(&f, f.products + s * f.width, rows, f.values + s * f.padded);
        if (then) {
            second_layer(&f, then, rows, count, out + first, out_stride);
            continue;
        }
        int64_t row = 0;
        if (count == GROUP)
            for (; row + 8 <= rows; row += 8)
                transpose(f.values + row, f.padded, out + row * out_stride + first, out_stride);
        for (; row < rows; row++)
            for (int s = 0; s < count; s++)
                out[row * out_stride + first + s] = f.values[s * f.padded + row];
    }
}
#else
int levels_run_here(void)
{
    return 0;
}
#endif
