/* Products of matrices. Sums have the same order for every width of the processor's vectors. */

#ifndef EVOLVE_PRODUCTS_H
#define EVOLVE_PRODUCTS_H

#include "layout.h"

/* Adds one strip of a product to out: rows x 2 vectors, whose sums stay in registers. */
INLINE void strip(int rows, int depth, int width, const real *restrict a, int stride,
                  const real *restrict b, real *restrict out)
{
    vector sums[STRIP_ROWS][2];
    for (int r = 0; r < rows; r++)
        sums[r][0] = sums[r][1] = (vector){0};
    for (int k = 0; k < depth; k++) {
        const vector *row = (const vector *)(b + (size_t)k * (size_t)width);
        const vector left = row[0], right = row[1];
        /* Fetches the next block of the kernel from memory while this one is used. */
        __builtin_prefetch(row + TILE * TILE / LANES, 0, 2);
        if (VECTOR_BYTES >= 64)
            __builtin_prefetch(row + 1 + TILE * TILE / LANES, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++) {
            const vector factor = a[(size_t)r * (size_t)stride + (size_t)k] - (vector){0};
            sums[r][0] = fused(factor, left, sums[r][0]);
            sums[r][1] = fused(factor, right, sums[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) {
        vector *row = (vector *)(out + (size_t)r * (size_t)width);
        row[0] += sums[r][0];
        row[1] += sums[r][1];
    }
}

/* out [rows][width] += a [rows][depth] b [depth][width]; the rows of a are stride numbers apart.
 *
 * Every number is summed over k in ascending order, and the sum is then added to out. */
static void add_product(int rows, int depth, int width, const real *a, int stride, const real *b,
                        real *out)
{
    for (int column = 0; column < width; column += 2 * LANES) {
        int row = 0;
        for (; row + STRIP_ROWS <= rows; row += STRIP_ROWS)
            strip(STRIP_ROWS, depth, width, a + (size_t)row * (size_t)stride, stride, b + column,
                  out + (size_t)row * (size_t)width + column);
        const real *rest = a + (size_t)row * (size_t)stride;
        real *into = out + (size_t)row * (size_t)width + column;
        /* The number of rows is a constant in every case, so that all sums stay in registers. */
#define REST(n)                                                         \
    case n:                                                             \
        strip(n, depth, width, rest, stride, b + column, into); \
        break;
        switch (rows - row) {
            REST(1) REST(2) REST(3) REST(4)
#if defined(__AVX512F__) || defined(__aarch64__)
            REST(5) REST(6) REST(7) REST(8) REST(9)
#endif
        }
#undef REST
    }
}

/* out [rows][TILE] = those columns of a K that belong to a tile; a is [rows][TILE] in every tile. */
static void kernel_product(const struct evolution *e, int rows, const real *a, size_t tile_stride,
                           int tile, real *out)
{
    const size_t block = (size_t)TILE * TILE;
    memset(out, 0, (size_t)rows * TILE * sizeof *out);
    for (int k = 0; k < e->tiles; k++)
        add_product(rows, TILE, TILE, a + (size_t)k * tile_stride, TILE,
                    e->blocks + ((size_t)tile * (size_t)e->tiles + (size_t)k) * block, out);
}

#endif
