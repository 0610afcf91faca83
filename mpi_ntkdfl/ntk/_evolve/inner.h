/* Inner steps: an explicit Runge-Kutta pair integrates a and z along the path, with step sizes from its
 * error estimate and from the spectral radius of the fast part. */

#ifndef EVOLVE_INNER_H
#define EVOLVE_INNER_H

#include "path.h"

/* ----------------------------------------------------------------------------------- step sizes */

/* sqrt(|square / size|), or 0 if square is 0. */
static double relative(double square, double size)
{
    if (square == 0)
        return 0;
    return fabs(size) > 0 ? sqrt(fabs(square) / fabs(size)) : INFINITY;
}

/* The factor by which the next step may be longer than the last one, whose error over its bound is
 * error. */
static double step_factor(const struct scheme *scheme, double error, double order)
{
    if (!isfinite(error))
        return scheme->shrink;
    const double wanted = scheme->safety * pow(fmax(error, 1e-10), -1 / order);
    return fmin(scheme->grow, fmax(scheme->shrink, wanted));
}

/* The length of the next step: step, or, if less than two steps are left, an equal share of what is
 * left. This avoids a tiny last step. */
static double share(double left, double step)
{
    if (left >= 2 * step)
        return step;
    return left > step ? left / ceil(left / step - 1e-9) : left;
}

/* The next step after an accepted trial. The trial may have been shortened to meet an end; then the step
 * size is at least what it was. */
static double lengthened(double step, double trial, double factor)
{
    return trial < step ? fmax(step, trial * factor) : trial * factor;
}

static int moves(double step, double u)
{
    return step > 1e-12 * fmax(1, u);
}

/* Bounds the inner steps by the spectral radius of the fast part's Jacobian, c F (diag(p) - p p^T) F^T.
 *
 * A power iteration, which continues from call to call, gives the radius. The matrix is symmetric, so
 * every iterate gives a lower bound of it. */
static void limit_step(struct evolution *e, int iterations)
{
    const int outputs = e->outputs;
    const size_t count = (size_t)outputs * RANK;
    real *turned = e->scratch[0];
    double radius = 0;
    for (int iteration = e->turns ? 0 : -1; iteration < iterations; iteration++) {
        memset(e->image, 0, count * sizeof *e->image);
        for (int tile = 0; tile < e->tiles; tile++) {
            const real *p = state_of(e, tile, e->newest, P), *y = slot_of(e, tile, TARGET);
            if (iteration < 0) { /* the iteration starts from F g */
                for (size_t i = 0; i < e->slot; i++)
                    turned[i] = p[i] - y[i];
            } else {
                memset(turned, 0, e->slot * sizeof *turned);
                add_fast(e, tile, e->direction, turned);
                turn(outputs, p, turned);
            }
            add_rate(e, tile, turned, e->image);
        }
        real length = 1;
        if (iteration >= 0) {
            for (size_t i = 0; i < count; i++)
                e->image[i] *= e->scale;
            const double image = norm(count, e->image);
            radius = image / norm(count, e->direction);
            length = (real)image;
        }
        for (size_t i = 0; i < count; i++)
            e->direction[i] = e->image[i] / length;
    }
    e->turns = radius > 0; /* NaN (0 / 0) if nothing changes: the next call starts the iteration anew */
    e->longest = e->turns ? e->scheme->stable / radius : INFINITY;
}

/* ---------------------------------------------------------------------------------- inner steps */

/* The weights by which the values at both ends of a step give the left sum of g over the integers in
 * [start, end).
 *
 * Let q be the polynomial of degree 5 with q, q', q'' = z, g, g' at both ends. The sum of q' is
 * w0 (z1 - z0) + w1 g0 + w2 g1 + w3 g0' + w4 g1'. Returns whether the step contains an integer. */
static int left_sum_weights(const struct scheme *scheme, double start, double end,
                            real weights[POWERS])
{
    static const int of_length[POWERS] = {-1, 0, 0, 1, 1};
    const double n = ceil(end) - ceil(start), step = end - start;
    if (!(n > 0))
        return 0;
    /* moments[k] = sum_{j < n} (x + j / step)^k, from sums of j^i by the binomial theorem. */
    const double x = (ceil(start) - start) / step;
    double sums[POWERS], moments[POWERS], scaled = 1;
    for (int i = 0; i < POWERS; i++, scaled /= step) {
        sums[i] = 0;
        for (int power = POWERS; power >= 0; power--)
            sums[i] = sums[i] * n + scheme->power_sums[i][power];
        sums[i] *= scaled;
    }
    for (int k = 0; k < POWERS; k++) {
        double binomial = 1;
        moments[k] = 0;
        for (int i = 0; i <= k; i++) {
            moments[k] += binomial * pow(x, k - i) * sums[i];
            binomial = binomial * (k - i) / (i + 1);
        }
    }
    for (int w = 0; w < POWERS; w++) {
        double weight = 0;
        for (int k = 0; k < POWERS; k++)
            weight += scheme->left_sum[w][k] * moments[k];
        weights[w] = (real)(weight * (of_length[w] < 0 ? 1 / step : of_length[w] ? step : 1));
    }
    return 1;
}

/* rate [output][RANK] = F g with the g of a state. */
static void fast_rate(struct evolution *e, int state, real *rate)
{
    real *g = e->scratch[0];
    memset(rate, 0, (size_t)e->outputs * RANK * sizeof *rate);
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *p = state_of(e, tile, state, P), *y = slot_of(e, tile, TARGET);
        for (size_t i = 0; i < e->slot; i++)
            g[i] = p[i] - y[i];
        add_rate(e, tile, g, rate);
    }
}

/* Computes BEND of a state in one tile: dg/du = (diag(p) - p p^T) (path' - c F^T a').
 *
 * scaled is -c a' with a' = F g, and row holds the derivatives of the powers of w. */
static void bend(const struct evolution *e, int tile, int state, const double row[TERMS],
                 const real *scaled)
{
    real *slope = state_of(e, tile, state, BEND);
    path_values(e, tile, row, slope);
    add_fast(e, tile, scaled, slope);
    turn(e->outputs, state_of(e, tile, state, P), slope);
}

/* Computes the stages of one inner step of length step from state now, at u, to state after.
 *
 * The rates of stage 0 are known; those of the other stages are computed. Returns the estimated local
 * error over its bound, with F^T F for K in the norm. */
static double try_step(struct evolution *e, int now, int after, double u, double step)
{
    const struct scheme *scheme = e->scheme;
    const size_t count = (size_t)e->outputs * RANK;
    const double *result = scheme->stages[STAGES - 1];
    real *f = e->scratch[0], *p = e->scratch[1], *g = e->scratch[2];
    double size = 0;
    for (int stage = 1; stage <= STAGES; stage++) {
        const double *weights = scheme->stages[stage - 1];
        const int last = stage == STAGES;
        real *fast = last ? e->fast[after] : e->stage, *rate = e->rates + (size_t)stage * count;
        double node = 0, row[TERMS];
        for (int k = 0; k < stage; k++)
            node += weights[k];
        path_row(e, u + node * step, 0, row);
        combine(e, stage, weights, fast);
        for (size_t i = 0; i < count; i++)
            fast[i] = e->fast[now][i] + (real)step * fast[i];
        const real *scaled = scale_fast(e, fast);
        memset(rate, 0, count * sizeof *rate);
        for (int tile = 0; tile < e->tiles; tile++) {
            const real *y = slot_of(e, tile, TARGET), *p0 = state_of(e, tile, now, P);
            real *gained = slot_of(e, tile, GAINED);
            if (last) {
                f = state_of(e, tile, after, F);
                p = state_of(e, tile, after, P);
            }
            path_values(e, tile, row, f);
            add_fast(e, tile, scaled, f);
            softmax(e->outputs, f, p);
            for (size_t i = 0; i < e->slot; i++)
                g[i] = p[i] - y[i];
            add_rate(e, tile, g, rate);
            if (stage == 1)
                for (size_t i = 0; i < e->slot; i++)
                    gained[i] = (real)result[0] * (p0[i] - y[i]) + (real)result[1] * g[i];
            else if (!last)
                for (size_t i = 0; i < e->slot; i++)
                    gained[i] += (real)result[stage] * g[i];
            else {
                const real *z = state_of(e, tile, now, Z), *f0 = slot_of(e, tile, INITIAL);
                real *reached = state_of(e, tile, after, Z);
                for (size_t i = 0; i < e->slot; i++) {
                    reached[i] = z[i] + (real)step * gained[i];
                    g[i] = f0[i] - f[i];
                }
                size += dot(e->outputs, reached, g);
            }
        }
    }
    combine(e, STAGES + 1, scheme->error, e->stage);
    const double error = step * norm(count, e->stage);
    size = update_size(e, after, size / e->problem->scale);
    return relative(error * error, size) / e->problem->inner_bound;
}

/* Adds the left sum of g over a step from state now to state after to the sum of the step being tried. */
static void add_left_sum(struct evolution *e, int tile, int now, int after,
                         const real weights[POWERS])
{
    const real *z0 = state_of(e, tile, now, Z), *z1 = state_of(e, tile, after, Z);
    const real *p0 = state_of(e, tile, now, P), *p1 = state_of(e, tile, after, P);
    const real *b0 = state_of(e, tile, now, BEND), *b1 = state_of(e, tile, after, BEND);
    const real *y = slot_of(e, tile, TARGET);
    real *restrict sum = slot_of(e, tile, SUM + !e->sum);
    for (size_t i = 0; i < e->slot; i++) {
        const real ends = weights[1] * (p0[i] - y[i]) + weights[2] * (p1[i] - y[i]);
        const real bends = weights[3] * b0[i] + weights[4] * b1[i];
        sum[i] += weights[0] * (z1[i] - z0[i]) + ends + bends;
    }
}

/* Integrates along the path from u to end. *now is the state at u, and then the state at end.
 *
 * The state at the newest end of an outer step is never overwritten. */
static enum status integrate(struct evolution *e, int *now, double u, double end)
{
    struct problem *problem = e->problem;
    const struct scheme *scheme = e->scheme;
    const size_t count = (size_t)e->outputs * RANK;
    for (;;) {
        const int after = *now == e->spare[0] ? e->spare[1] : e->spare[0];
        const double left = end - u, trial = share(left, fmin(e->inner_step, e->longest));
        if (problem->trials++ >= scheme->most_trials)
            return TOO_MANY;
        const double error = try_step(e, *now, after, u, trial);
        const double factor = step_factor(scheme, error, scheme->inner_order);
        if (!(error <= 1)) {
            e->inner_step = trial * factor;
            if (!moves(e->inner_step, u))
                return COLLAPSED;
            continue;
        }
        e->inner_step = lengthened(e->inner_step, trial, factor);
        /* Not u + trial: its rounding error could move it past an integer end, which would then be
         * counted twice. */
        const double reached = trial == left ? end : u + trial;
        real weights[POWERS] = {0};
        const int sums = left_sum_weights(scheme, u, reached, weights);
        double row[TERMS];
        path_row(e, u + trial, 1, row);
        const real *rate = e->rates + STAGES * count, *scaled = scale_fast(e, rate);
        for (int tile = 0; tile < e->tiles; tile++) {
            bend(e, tile, after, row, scaled);
            if (sums)
                add_left_sum(e, tile, *now, after, weights);
        }
        memcpy(e->rates, rate, count * sizeof *rate);
        *now = after;
        u = reached;
        problem->reached = u;
        if (trial == left)
            return DONE;
    }
}

#endif
