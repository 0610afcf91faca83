/* Outer steps: inner steps along the path, then a product with K' that shows the path's error. */

#ifndef EVOLVE_OUTER_H
#define EVOLVE_OUTER_H

#include "inner.h"

/* Copies a slot of one tile into out [sample][output], without the padding. */
static void unpack(const struct evolution *e, int tile, const real *slot, real *out)
{
    const int64_t first = (int64_t)tile * TILE, left = e->problem->samples - first;
    for (int s = 0; s < (left < TILE ? left : TILE); s++)
        for (int c = 0; c < e->outputs; c++)
            out[(first + s) * e->outputs + c] = slot[c * TILE + s];
}

/* Computes the gain of R, and R', at the spare end, from one product of K' with the gain of z and g.
 *
 * The product takes the gain of z and not z, because rounding errors of a product are relative to its
 * factors. */
static void multiply_by_kernel(struct evolution *e, int now)
{
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *z = state_of(e, tile, now, Z), *before = state_of(e, tile, e->newest, Z);
        const real *p = state_of(e, tile, now, P), *y = slot_of(e, tile, TARGET);
        real *restrict gain = slot_of(e, tile, FACTORS), *restrict g = gain + e->slot;
        for (size_t i = 0; i < e->slot; i++) {
            gain[i] = z[i] - before[i];
            g[i] = p[i] - y[i];
        }
    }
    for (int tile = 0; tile < e->tiles; tile++) {
        real *both = slot_of(e, tile, END + 2 * e->ends[ENDS]);
        kernel_product(e, 2 * e->outputs, slot_of(e, 0, FACTORS), SLOTS * e->slot, tile, both);
        for (size_t i = 0; i < 2 * e->slot; i++)
            both[i] *= e->scale;
    }
    e->problem->products += 2 * e->outputs;
}

/* Compares the path with the computed R at u = then, and corrects the outputs of state now by their
 * difference (MISSED).
 *
 * Returns the error of the outer step over its bound. To first order g has an error of H MISSED, with
 * H = diag(p) - p p^T. */
static double correct(struct evolution *e, int now, double then)
{
    double value[TERMS], slope[TERMS], square = 0, size = 0;
    path_row(e, then, 0, value);
    path_row(e, then, 1, slope);
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *gain = slot_of(e, tile, END + 2 * e->ends[ENDS]), *pace = gain + e->slot;
        const real *base = slot_of(e, tile, PATH), *f0 = slot_of(e, tile, INITIAL);
        real *missed = slot_of(e, tile, MISSED), *drift = slot_of(e, tile, DRIFT);
        real *f = state_of(e, tile, now, F), *p = state_of(e, tile, now, P);
        real *turned = e->scratch[0], *change = e->scratch[1];
        path_values(e, tile, value, missed);
        path_values(e, tile, slope, drift);
        for (size_t i = 0; i < e->slot; i++) {
            missed[i] -= base[i] - gain[i];
            drift[i] += pace[i];
            f[i] -= missed[i];
            change[i] = f0[i] - f[i];
            turned[i] = missed[i];
        }
        turn(e->outputs, p, turned);
        square += dot(e->outputs, turned, missed);
        size += dot(e->outputs, state_of(e, tile, now, Z), change);
        softmax(e->outputs, f, p);
    }
    square *= e->scheme->mean_over_end * (then - e->at[0]);
    size = e->problem->scale * update_size(e, now, size / e->problem->scale);
    return relative(square, size) / e->problem->outer_bound;
}

/* Subtracts the path's error at u from out, the outputs [sample][output] at a tau inside the step.
 *
 * The error is taken to be a cubic polynomial in w: it and its slope are 0 at the origin, and MISSED and
 * DRIFT at the end of the step, u = then. */
static void correct_mark(const struct evolution *e, double u, double then, real *out)
{
    const double whole = path_time(e, then), part = path_time(e, u) / whole;
    const double pace = whole * e->unit * (then + e->shift);
    const real of_value = (real)(part * part * (3 - 2 * part));
    const real of_slope = (real)(part * part * (part - 1) * pace);
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *missed = slot_of(e, tile, MISSED), *drift = slot_of(e, tile, DRIFT);
        const int64_t first = (int64_t)tile * TILE, left = e->problem->samples - first;
        for (int s = 0; s < (left < TILE ? left : TILE); s++)
            for (int c = 0; c < e->outputs; c++)
                out[(first + s) * e->outputs + c] -=
                    of_value * missed[c * TILE + s] + of_slope * drift[c * TILE + s];
    }
}

/* Makes the spare end, at u, the newest one. */
static void add_end(struct evolution *e, double u)
{
    const int place = e->ends[ENDS];
    for (int k = ENDS; k > 0; k--)
        e->ends[k] = e->ends[k - 1];
    e->ends[0] = place;
    for (int k = ENDS - 1; k > 0; k--)
        e->at[k] = e->at[k - 1];
    e->at[0] = u;
    if (e->count < ENDS)
        e->count++;
}

/* Accepts an outer step: the state at u = then becomes the one at the newest end. */
static void accept(struct evolution *e, int now, double then)
{
    add_end(e, then);
    if (now == e->spare[0])
        e->spare[0] = e->newest;
    else
        e->spare[1] = e->newest;
    e->newest = now;
    e->sum = !e->sum;
    for (int tile = 0; tile < e->tiles; tile++) {
        real *restrict base = slot_of(e, tile, PATH);
        const real *gain = slot_of(e, tile, END + 2 * e->ends[0]);
        for (size_t i = 0; i < e->slot; i++)
            base[i] -= gain[i];
    }
    follow(e);
}

/* Tries the outer step to u = then, and accepts it if its error is in bounds; *error becomes the error
 * over its bound.
 *
 * Results at taus inside the step are written before that. If the step is rejected, a later step writes
 * them again. */
static enum status attempt(struct evolution *e, double then, double *error)
{
    struct problem *problem = e->problem;
    const int64_t numbers = problem->samples * problem->outputs;
    const double start = e->at[0];
    int64_t first = 0, mark;
    int now = e->newest;
    double row[TERMS], u = start;
    path_row(e, start, 1, row);
    fast_rate(e, now, e->rates);
    const real *scaled = scale_fast(e, e->rates);
    for (int tile = 0; tile < e->tiles; tile++) {
        memcpy(slot_of(e, tile, SUM + !e->sum), slot_of(e, tile, SUM + e->sum),
               e->slot * sizeof(real));
        bend(e, tile, now, row, scaled);
    }
    while (first < problem->marks && (double)problem->taus[first] <= start)
        first++;
    for (mark = first; u < then; mark++) {
        const int there = mark < problem->marks && (double)problem->taus[mark] <= then;
        const double stop = there ? (double)problem->taus[mark] : then;
        const enum status status = integrate(e, &now, u, stop);
        if (status != DONE)
            return status;
        u = stop;
        for (int tile = 0; there && tile < e->tiles; tile++) {
            unpack(e, tile, slot_of(e, tile, SUM + !e->sum), problem->sums_at + mark * numbers);
            unpack(e, tile, state_of(e, tile, now, F), problem->outputs_at + mark * numbers);
        }
    }
    multiply_by_kernel(e, now);
    *error = correct(e, now, then);
    if (*error <= 1) {
        for (mark = first; mark < problem->marks && (double)problem->taus[mark] <= then; mark++)
            correct_mark(e, (double)problem->taus[mark], then, problem->outputs_at + mark * numbers);
        accept(e, now, then);
    }
    return DONE;
}

#endif
