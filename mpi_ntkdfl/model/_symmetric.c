/* Adds the lower triangle of a a^T to a matrix, on one thread of a CPU, in float32.
 *
 * A symmetric product by general products computes more than its lower triangle, and packs the rows of a
 * once per tile. Here, LENGTH columns of a are packed once, and tiles of ROWS x COLUMNS entries follow from
 * them.
 *
 * Packed form: panels of LANES rows, [panel][column][LANES], with zeros beyond the last row. A tile reads
 * numbers of its rows one by one, and vectors of its columns.
 *
 * Bits. An entry is the sum of one chain of fused operations per LENGTH columns, in the order of the
 * columns. So all builds agree in every bit.
 */

#include "../runtime/_vectors.h"

#include <string.h>

/* A tile has ROWS rows and PANELS panels of columns, whose sums stay in registers. */
enum { ROWS = VECTOR_BYTES == 64 ? 8 : 4, PANELS = 3, LENGTH = 256 };
typedef float loose __attribute__((vector_size(VECTOR_BYTES), may_alias, aligned(4)));
typedef int32_t indices __attribute__((vector_size(VECTOR_BYTES)));

static int64_t panels(int64_t rows)
{
    return (rows + LANES - 1) / LANES;
}

/* Transposes a block in place: exchanges halves, quarters, ... of pairs of rows. */
INLINE void transpose(vector *block)
{
    indices low, high;
#pragma GCC unroll 4
    for (int step = 1; step < LANES; step *= 2) {
        for (int i = 0; i < LANES; i++) {
            low[i] = i & step ? LANES + i - step : i;
            high[i] = i & step ? LANES + i : i + step;
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & step)) {
                const vector one = block[i], other = block[i + step];
                block[i] = __builtin_shuffle(one, other, low);
                block[i + step] = __builtin_shuffle(one, other, high);
            }
    }
}

/* Packs `length` columns of `rows` rows, at most LANES, into one panel. */
static void pack(float *to, const float *from, int64_t stride, int64_t rows, int64_t length)
{
    int64_t k = 0;
    if (rows == LANES)
        for (; k + LANES <= length; k += LANES) {
            vector block[LANES];
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                block[r] = *(const loose *)(from + r * stride + k);
            transpose(block);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++)
                ((vector *)(to + k * LANES))[r] = block[r];
        }
    for (; k < length; k++)
        for (int64_t r = 0; r < LANES; r++)
            to[k * LANES + r] = r < rows ? from[r * stride + k] : 0;
}

/* Adds the products of ROWS rows with `width` panels of columns to `out`, of whose entries `rows` rows and
 * `columns` columns exist. */
INLINE void tile(const int width, const float *a, const float *b, int64_t length, float *out,
                 int64_t stride, int64_t rows, int64_t columns)
{
    vector sums[ROWS][PANELS];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int p = 0; p < width; p++)
            sums[r][p] = (vector){0};
    for (int64_t k = 0; k < length; k++) {
        vector row[PANELS];
#pragma GCC unroll 3
        for (int p = 0; p < width; p++)
            row[p] = *(const vector *)(b + (p * LENGTH + k) * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++) {
            const vector entry = a[k * LANES + r] - (vector){0};
#pragma GCC unroll 3
            for (int p = 0; p < width; p++)
                sums[r][p] = fused(entry, row[p], sums[r][p]);
        }
    }
    if (rows >= ROWS && columns >= width * LANES) {
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
            for (int p = 0; p < width; p++)
                *(loose *)(out + r * stride + p * LANES) += sums[r][p];
        return;
    }
    float found[ROWS][PANELS * LANES];
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 3
        for (int p = 0; p < width; p++)
            memcpy(&found[r][p * LANES], &sums[r][p], sizeof(vector));
    for (int64_t r = 0; r < rows && r < ROWS; r++)
        for (int64_t c = 0; c < columns && c < width * LANES; c++)
            out[r * stride + c] += found[r][c];
}

/* How many numbers the workspace has. */
int64_t symmetric_workspace(int64_t rows)
{
    return panels(rows) * LANES * LENGTH + LANES;
}

/* Adds a a^T of a [rows][columns] to the lower triangle of `out`; above it, sums become other numbers. */
void symmetric_add(int64_t rows, int64_t columns, const float *a, int64_t a_stride, float *out,
                   int64_t stride, float *workspace)
{
    const int64_t all = panels(rows), size = LANES * LENGTH;
    float *packed = (float *)(((uintptr_t)workspace + 4 * LANES - 1) / (4 * LANES) * (4 * LANES));
    for (int64_t start = 0; start < columns; start += LENGTH) {
        const int64_t length = columns - start < LENGTH ? columns - start : LENGTH;
        for (int64_t p = 0; p < all; p++) {
            const int64_t left = rows - p * LANES;
            pack(packed + p * size, a + p * LANES * a_stride + start, a_stride,
                 left < LANES ? left : LANES, length);
        }
        for (int64_t p = 0; p < all; p += PANELS) {
            const float *b = packed + p * size;
            for (int64_t r = p * LANES; r < rows; r += ROWS) {
                const float *tops = packed + r / LANES * size + r % LANES;
                float *to = out + r * stride + p * LANES;
                /* Panels that begin right of the diagonal of these rows are left out. */
                const int64_t seen = (r + ROWS - 1) / LANES - p + 1, left = rows - p * LANES;
                if (seen >= 3 && all - p >= 3)
                    tile(3, tops, b, length, to, stride, rows - r, left);
                else if (seen >= 2 && all - p >= 2)
                    tile(2, tops, b, length, to, stride, rows - r, left);
                else
                    tile(1, tops, b, length, to, stride, rows - r, left);
            }
        }
    }
}
