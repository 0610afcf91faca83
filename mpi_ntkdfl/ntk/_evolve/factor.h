/* The factor F of the kernel: F^T F <= K is close to K on its leading eigenvectors. */

#ifndef EVOLVE_FACTOR_H
#define EVOLVE_FACTOR_H

#include "products.h"

/* The lower half of gram = a b^T in double precision, where a and b are [RANK][TILE] in every tile. */
static void gram_matrix(int tiles, const real *a, const real *b, double gram[RANK][RANK])
{
    enum { PARTS = 8 };
    memset(gram, 0, sizeof(double[RANK][RANK]));
    for (int tile = 0; tile < tiles; tile++)
        for (int i = 0; i < RANK; i++)
            for (int j = 0; j <= i; j++) {
                const real *x = a + (tile * RANK + i) * TILE, *y = b + (tile * RANK + j) * TILE;
                double parts[PARTS] = {0};
                for (int s = 0; s < TILE; s += PARTS)
                    for (int part = 0; part < PARTS; part++)
                        parts[part] += (double)x[s + part] * (double)y[s + part];
                for (int part = 0; part < PARTS; part++)
                    gram[i][j] += parts[part];
            }
}

/* Replaces rows [RANK][TILE] in every tile by L^-1 rows, where gram = L L^T.
 *
 * The Cholesky factorisation takes the largest pivot first. It stops at pivots below least times the
 * first one, which may be rounding errors only; the remaining rows become zero. Only the lower half
 * of gram is read. */
static enum status whiten(int tiles, double gram[RANK][RANK], double least, real *rows)
{
    int order[RANK], kept = 0;
    double first = 0;
    for (int i = 0; i < RANK; i++) {
        order[i] = i;
        for (int j = 0; j < i; j++)
            gram[j][i] = gram[i][j];
    }
    for (int k = 0; k < RANK; k++) {
        int best = k;
        for (int i = k; i < RANK; i++) {
            if (!isfinite(gram[order[i]][order[i]]))
                return NOT_FINITE;
            if (gram[order[i]][order[i]] > gram[order[best]][order[best]])
                best = i;
        }
        const int p = order[best];
        order[best] = order[k];
        order[k] = p;
        if (k == 0)
            first = gram[p][p];
        if (!(gram[p][p] > 0 && gram[p][p] > least * first))
            break;
        kept++;
        /* Computes column k of L and subtracts its products from the rest of gram. L replaces the
         * columns of the pivots. */
        gram[p][p] = sqrt(gram[p][p]);
        for (int i = k + 1; i < RANK; i++)
            gram[order[i]][p] /= gram[p][p];
        for (int i = k + 1; i < RANK; i++)
            for (int j = k + 1; j < RANK; j++)
                gram[order[i]][order[j]] -= gram[order[i]][p] * gram[order[j]][p];
    }
    double solved[RANK][TILE];
    for (int tile = 0; tile < tiles; tile++, rows += RANK * TILE) {
        for (int k = 0; k < kept; k++) {
            const double *l = gram[order[k]];
            for (int s = 0; s < TILE; s++)
                solved[k][s] = (double)rows[order[k] * TILE + s];
            for (int j = 0; j < k; j++)
                for (int s = 0; s < TILE; s++)
                    solved[k][s] -= l[order[j]] * solved[j][s];
            for (int s = 0; s < TILE; s++)
                solved[k][s] /= l[order[k]];
        }
        for (int k = 0; k < RANK; k++)
            for (int s = 0; s < TILE; s++)
                rows[k * TILE + s] = k < kept ? (real)solved[k][s] : 0;
    }
    return DONE;
}

/* Finds F, so that F^T F <= K is close to K on its leading eigenvectors, and replaces K by K'.
 *
 * F^T F = K B^T (B K B^T)^+ B K with the basis B from a subspace iteration. */
static enum status split_kernel(struct evolution *e)
{
    const struct scheme *scheme = e->scheme;
    const size_t rows = (size_t)RANK * TILE;
    double gram[RANK][RANK];
    real *image = e->factor, *basis = e->transposed; /* of the same size */
    for (int pass = 0;; pass++) {
        for (int tile = 0; tile < e->tiles; tile++)
            kernel_product(e, RANK, basis, rows, tile, image + (size_t)tile * rows);
        if (pass == scheme->passes)
            break;
        gram_matrix(e->tiles, image, image, gram);
        if (whiten(e->tiles, gram, scheme->least_in_basis, image) != DONE)
            return NOT_FINITE;
        memcpy(basis, image, (size_t)e->tiles * rows * sizeof *basis);
    }
    gram_matrix(e->tiles, image, basis, gram);
    if (whiten(e->tiles, gram, scheme->least_in_factor, image) != DONE)
        return NOT_FINITE;
    for (int tile = 0; tile < e->tiles; tile++)
        for (int k = 0; k < RANK; k++)
            for (int s = 0; s < TILE; s++)
                e->transposed[((size_t)tile * TILE + (size_t)s) * RANK + (size_t)k] =
                    e->factor[(size_t)tile * rows + (size_t)(k * TILE + s)];
    real *negative = e->scratch[0], *block = e->blocks;
    for (int column = 0; column < e->tiles; column++)
        for (int row = 0; row < e->tiles; row++, block += TILE * TILE) {
            for (size_t i = 0; i < rows; i++)
                negative[i] = -e->transposed[(size_t)row * rows + i];
            add_product(TILE, RANK, TILE, negative, RANK, e->factor + (size_t)column * rows, block);
        }
    return DONE;
}

#endif
