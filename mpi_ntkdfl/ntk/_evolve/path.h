/* The two parts of the outputs between two products with the kernel: the fast part, F^T a, and the path,
 * f(0) - R, which is a polynomial in a logarithm of time through the ends of the last outer steps. */

#ifndef EVOLVE_PATH_H
#define EVOLVE_PATH_H

#include "products.h"
#include "softmax.h"

/* ------------------------------------------------------------------------------- the fast part */

/* out = sum_k weights[k] rates[k], [output][RANK]. */
static void combine(const struct evolution *e, int terms, const double *weights, real *restrict out)
{
    const size_t count = (size_t)e->outputs * RANK;
    for (int k = 0; k < terms; k++) {
        const real weight = (real)weights[k], *rate = e->rates + (size_t)k * count;
        if (k == 0)
            for (size_t i = 0; i < count; i++)
                out[i] = weight * rate[i];
        else
            for (size_t i = 0; i < count; i++)
                out[i] += weight * rate[i];
    }
}

/* -c a, [output][RANK]; its product with F^T is the fast part of the outputs. */
static const real *scale_fast(const struct evolution *e, const real *a)
{
    real *restrict scaled = e->image;
    for (size_t i = 0; i < (size_t)e->outputs * RANK; i++)
        scaled[i] = -e->scale * a[i];
    return scaled;
}

/* z^T K z of a state, from size = <z, f(0) - f> / c.
 *
 * Where f has changed by less than its rounding error, size is 0 or noise. The result is therefore at
 * least |a|^2 = z^T F^T F z, which never exceeds z^T K z. NaN stays NaN. */
static double update_size(const struct evolution *e, int state, double size)
{
    const double length = norm((size_t)e->outputs * RANK, e->fast[state]);
    return size < length * length ? length * length : size;
}

/* out += F^T a of one tile, where a is [output][RANK] and out [output][TILE]. */
static void add_fast(const struct evolution *e, int tile, const real *a, real *out)
{
    add_product(e->outputs, RANK, TILE, a, RANK, e->factor + (size_t)tile * RANK * TILE, out);
}

/* out += F g of one tile, where g is [output][TILE] and out [output][RANK]. */
static void add_rate(const struct evolution *e, int tile, const real *g, real *out)
{
    add_product(e->outputs, TILE, RANK, g, TILE, e->transposed + (size_t)tile * RANK * TILE, out);
}

/* ------------------------------------------------------------------------------- the slow path */

/* w = log((u + shift) / (origin + shift)) / unit. The path, f(0) - R, is a polynomial in w. */
static double path_time(const struct evolution *e, double u)
{
    return log1p((u - e->at[0]) / (e->at[0] + e->shift)) / e->unit;
}

/* The powers of w at u (order 0), or their derivatives with respect to u (order 1). */
static void path_row(const struct evolution *e, double u, int order, double row[TERMS])
{
    const double w = path_time(e, u);
    const double rate = order ? 1 / (e->unit * (u + e->shift)) : 1;
    double power = rate;
    row[0] = order ? 0 : 1;
    for (int k = 1; k < TERMS; k++) {
        row[k] = order ? k * power : power * w;
        power *= w;
    }
}

/* Inverts a [count][count] in place by Gauss-Jordan elimination with the largest pivot of each column. */
static void invert(int count, double a[TERMS][TERMS])
{
    double b[TERMS][TERMS] = {{0}};
    for (int i = 0; i < count; i++)
        b[i][i] = 1;
    for (int k = 0; k < count; k++) {
        int best = k;
        for (int i = k; i < count; i++)
            if (fabs(a[i][k]) > fabs(a[best][k]))
                best = i;
        for (int j = 0; j < count; j++) {
            double swap = a[k][j];
            a[k][j] = a[best][j];
            a[best][j] = swap;
            swap = b[k][j];
            b[k][j] = b[best][j];
            b[best][j] = swap;
        }
        const double pivot = a[k][k];
        for (int j = 0; j < count; j++) {
            a[k][j] /= pivot;
            b[k][j] /= pivot;
        }
        for (int i = 0; i < count; i++) {
            const double factor = a[i][k];
            for (int j = 0; i != k && j < count; j++) {
                a[i][j] -= factor * a[k][j];
                b[i][j] -= factor * b[k][j];
            }
        }
    }
    memcpy(a, b, sizeof b);
}

/* Computes the path's coefficients, so that it matches R' at the newest end, and R and R' at the older
 * ends. R at the newest end is matched because w is 0 there. */
static void follow(struct evolution *e)
{
    const int known = 2 * e->count - 1;
    double system[TERMS][TERMS], row[TERMS];
    e->unit = 1;
    if (e->count > 1)
        e->unit = -path_time(e, e->at[1]);
    for (int i = 0; i < known; i++) {
        /* The slope at the newest end, then value and slope at every older end. */
        path_row(e, e->at[(i + 1) / 2], i % 2 == 0, row);
        memcpy(system[i], row + 1, (TERMS - 1) * sizeof *row);
    }
    invert(known, system);
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *gain[ENDS], *slope[ENDS];
        for (int k = 0; k < e->count; k++) {
            gain[k] = slot_of(e, tile, END + 2 * e->ends[k]);
            slope[k] = gain[k] + e->slot;
        }
        for (int term = 0; term < known; term++) {
            real *restrict out = slot_of(e, tile, PATH + 1 + term);
            real weights[TERMS];
            for (int i = 0; i < known; i++)
                weights[i] = (real)system[term][i];
            /* R at an older end, relative to R at the newest end, is minus the sum of the gains since
             * then. A difference of both values of R would be lost in rounding. */
            for (size_t i = 0; i < e->slot; i++)
                out[i] = -weights[0] * slope[0][i];
            if (e->count > 1)
                for (size_t i = 0; i < e->slot; i++)
                    out[i] += weights[1] * gain[0][i] - weights[2] * slope[1][i];
            if (e->count > 2)
                for (size_t i = 0; i < e->slot; i++)
                    out[i] += weights[3] * (gain[0][i] + gain[1][i]) - weights[4] * slope[2][i];
        }
    }
}

/* out [output][TILE] = the path in one tile, where row holds powers of w; its derivative, where row
 * holds their derivatives. */
static void path_values(const struct evolution *e, int tile, const double row[TERMS],
                        real *restrict out)
{
    const real *coefficients = slot_of(e, tile, PATH);
    const real first = (real)row[0], second = (real)row[1];
    for (size_t i = 0; i < e->slot; i++)
        out[i] = first * coefficients[i] + second * coefficients[e->slot + i];
    for (int term = 2; term < 2 * e->count; term += 2) {
        const real *even = coefficients + (size_t)term * e->slot, *odd = even + e->slot;
        const real a = (real)row[term], b = (real)row[term + 1];
        for (size_t i = 0; i < e->slot; i++)
            out[i] += a * even[i] + b * odd[i];
    }
}

#endif
