/* The softmax, its derivative, and norms. All arrays are slots of one tile, [output][TILE]. */

#ifndef EVOLVE_SOFTMAX_H
#define EVOLVE_SOFTMAX_H

#include "layout.h"

/* The integer type of a number's size, the layout of a number, and log 2 = LOG2_HIGH + LOG2_LOW. LOG2_HIGH
 * has so few bits that its products with small integers are exact. */
#ifdef REAL_DOUBLE
typedef uint64_t bits;
enum { MANTISSA = 52, BIAS = 1023, EXP_TERMS = 13 };
#define LOG2_HIGH 0x1.62e42feep-1
#define LOG2_LOW 0x1.a39ef35793c76p-33
#else
typedef uint32_t bits;
enum { MANTISSA = 23, BIAS = 127, EXP_TERMS = 7 };
#define LOG2_HIGH 0x1.62e4p-1f
#define LOG2_LOW 0x1.7f7d1cp-20f
#endif

/* e^x for x <= 0, with an error of a few units in the last place.
 *
 * With x = n log 2 + r and |r| <= log(2) / 2, e^x = 2^n e^r, and e^r is computed as its Taylor
 * polynomial. Below x = -64 the result is e^-64, which changes no sum with 1: smaller results could be
 * subnormal numbers, which are slow. NaN stays NaN. */
INLINE real exponential(real x)
{
    static const real inverse_factorials[] = {
        (real)1,
        (real)1,
        (real)(1.0 / 2),
        (real)(1.0 / 6),
        (real)(1.0 / 24),
        (real)(1.0 / 120),
        (real)(1.0 / 720),
        (real)(1.0 / 5040),
        (real)(1.0 / 40320),
        (real)(1.0 / 362880),
        (real)(1.0 / 3628800),
        (real)(1.0 / 39916800),
        (real)(1.0 / 479001600),
    };
    x = x < -64 ? -64 : x;
    /* This sum is so large that it has no bits for a fraction. The addition therefore rounds it to an
     * integer, and its lowest bits are n. */
    const real rounder = (real)1.5 * (real)((bits)1 << MANTISSA);
    const real shifted = x * (real)1.44269504088896340736 + rounder, n = shifted - rounder;
    const real r = (x - n * LOG2_HIGH) - n * LOG2_LOW;
    real value = inverse_factorials[EXP_TERMS - 1];
#pragma GCC unroll 16
    for (int k = EXP_TERMS - 2; k >= 0; k--)
        value = value * r + inverse_factorials[k];
    bits whole;
    memcpy(&whole, &shifted, sizeof whole);
    whole = (whole + BIAS) << MANTISSA;
    real power;
    memcpy(&power, &whole, sizeof power);
    return value * power;
}

/* p = softmax(f) over the outputs; both [output][TILE]. */
static void softmax(int outputs, const real *restrict f, real *restrict p)
{
    const size_t slot = (size_t)outputs * TILE;
    real most[TILE], total[TILE] = {0};
    memcpy(most, f, sizeof most);
    for (size_t c = TILE; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++)
            most[s] = f[c + s] > most[s] ? f[c + s] : most[s];
    for (size_t c = 0; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++) {
            const real value = exponential(f[c + s] - most[s]);
            p[c + s] = value;
            total[s] += value;
        }
    for (size_t s = 0; s < TILE; s++)
        total[s] = 1 / total[s];
    for (size_t c = 0; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++)
            p[c + s] *= total[s];
}

/* d = (diag(p) - p p^T) d for every sample; both [output][TILE]. */
static void turn(int outputs, const real *restrict p, real *restrict d)
{
    const size_t slot = (size_t)outputs * TILE;
    real total[TILE] = {0};
    for (size_t c = 0; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++) {
            d[c + s] *= p[c + s];
            total[s] += d[c + s];
        }
    for (size_t c = 0; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++)
            d[c + s] -= p[c + s] * total[s];
}

/* The sum of a b over a tile's slot: first over the outputs of each sample, then over the samples in
 * double precision. */
static double dot(int outputs, const real *a, const real *b)
{
    const size_t slot = (size_t)outputs * TILE;
    real lanes[TILE] = {0};
    for (size_t c = 0; c < slot; c += TILE)
        for (size_t s = 0; s < TILE; s++)
            lanes[s] += a[c + s] * b[c + s];
    double total = 0;
    for (size_t s = 0; s < TILE; s++)
        total += (double)lanes[s];
    return total;
}

static double norm(size_t count, const real *a)
{
    double total = 0;
    for (size_t i = 0; i < count; i++)
        total += (double)a[i] * (double)a[i];
    return sqrt(total);
}

#endif
