/* Evolution of one client's network outputs under the cross-entropy loss, on one thread of a CPU.
 *
 * evolve.py explains the scheme and its notation, scheme.py holds its constants, and evolve_batch.py
 * is the same scheme in tensors. In short: with the outputs f, one-hot targets Y, the residual
 * g = softmax(f) - Y, its integral z(u) = int_0^u g, and a factor F of the kernel K = F^T F + K',
 *
 *     f = f(0) - c F^T a - R,    a = F z  (fast, a few numbers per output),    R = c K' z  (slow).
 *
 * Outer steps compute R and R' = c K' g with the kernel and extrapolate R. Inner steps integrate a
 * and z along the extrapolated R by an explicit Runge-Kutta pair, and sum g over the integers u.
 *
 * This file has the functions that Python calls. The parts of the scheme are in _evolve/, and each uses
 * those before it: layout (of memory), products, softmax, factor, path, inner, outer. They are included
 * here, so that the compiler sees one file.
 *
 * Bits. The result does not depend on the width of the processor's vectors. Every sum over outputs,
 * samples or ranks is taken in the same order for every width. Products of matrices use fused operations,
 * which round once where a product and a sum would round twice, and so take half as many operations.
 * Elsewhere the build forbids the compiler to fuse. This file, with all its parts, is compiled once per
 * instruction set and per type of number. All builds of one type agree in every bit.
 */

#include "_evolve/factor.h"
#include "_evolve/outer.h"

/* Cuts the kernel, the outputs and the targets into tiles. The padding is zero. */
static void pack(struct evolution *e)
{
    const struct problem *problem = e->problem;
    const int64_t n = problem->samples;
    real *block = e->blocks;
    for (int64_t column = 0; column < n; column += TILE)
        for (int64_t row = 0; row < n; row += TILE, block += TILE * TILE) {
            const int64_t width = n - column < TILE ? n - column : TILE;
            const int64_t height = n - row < TILE ? n - row : TILE;
            if (width < TILE || height < TILE)
                memset(block, 0, TILE * TILE * sizeof *block);
            for (int64_t r = 0; r < height; r++)
                memcpy(block + r * TILE, problem->kernel + (row + r) * n + column,
                       (size_t)width * sizeof *block);
        }
    const int64_t rank = e->scheme->rank < n ? e->scheme->rank : n;
    memset(e->transposed, 0, (size_t)e->tiles * RANK * TILE * sizeof(real));
    for (int64_t k = 0; k < rank; k++)
        for (int64_t s = 0; s < n; s++)
            e->transposed[(s / TILE * RANK + k) * TILE + s % TILE] = problem->start[k * n + s];
    for (int tile = 0; tile < e->tiles; tile++) {
        real *f = slot_of(e, tile, INITIAL), *y = slot_of(e, tile, TARGET);
        for (int s = 0; s < TILE; s++)
            for (int c = 0; c < e->outputs; c++) {
                const int64_t sample = (int64_t)tile * TILE + s, place = sample * e->outputs + c;
                f[c * TILE + s] = sample < n ? problem->initial[place] : 0;
                y[c * TILE + s] = sample < n ? problem->targets[place] : 0;
            }
    }
}

static int tiles_of(int64_t samples)
{
    return (int)((samples + TILE - 1) / TILE);
}

/* Sets the sizes and places all arrays one after another from base on, which may be NULL. Returns the
 * number of numbers they need. */
static size_t arrange(struct evolution *e, int64_t samples, int64_t outputs, real *base)
{
    e->outputs = (int)outputs;
    e->tiles = tiles_of(samples);
    e->slot = (size_t)outputs * TILE;
    const size_t tiles = (size_t)e->tiles, fast = (size_t)outputs * RANK, two = 2 * e->slot;
    const size_t scratch = two > RANK * TILE ? two : RANK * TILE;
    const struct {
        real **array;
        size_t count;
    } arrays[] = {
        {&e->blocks, tiles * tiles * TILE * TILE},
        {&e->factor, tiles * RANK * TILE},
        {&e->transposed, tiles * RANK * TILE},
        {&e->all, tiles * SLOTS * e->slot},
        {&e->scratch[0], scratch},
        {&e->scratch[1], scratch},
        {&e->scratch[2], scratch},
        {&e->rates, (STAGES + 1) * fast},
        {&e->fast[0], fast},
        {&e->fast[1], fast},
        {&e->fast[2], fast},
        {&e->stage, fast},
        {&e->direction, fast},
        {&e->image, fast},
    };
    size_t used = 0;
    for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++) {
        *arrays[k].array = base ? base + used : NULL;
        used += arrays[k].count;
    }
    return used;
}

/* Prepares the state at u = 0, where z = 0, S = 0 and R = 0. */
static enum status begin(struct evolution *e)
{
    pack(e);
    if (split_kernel(e) != DONE)
        return NOT_FINITE;
    e->turns = e->newest = e->sum = e->count = 0;
    e->spare[0] = 1;
    e->spare[1] = 2;
    for (int k = 0; k <= ENDS; k++)
        e->ends[k] = k;
    for (int tile = 0; tile < e->tiles; tile++) {
        const real *initial = slot_of(e, tile, INITIAL);
        memset(slot_of(e, tile, SUM), 0, e->slot * sizeof(real));
        memset(state_of(e, tile, 0, Z), 0, e->slot * sizeof(real));
        memcpy(state_of(e, tile, 0, F), initial, e->slot * sizeof(real));
        memcpy(slot_of(e, tile, PATH), initial, e->slot * sizeof(real));
        softmax(e->outputs, initial, state_of(e, tile, 0, P));
    }
    memset(e->fast[0], 0, (size_t)e->outputs * RANK * sizeof(real));
    e->problem->products = (e->scheme->passes + 1) * RANK;
    multiply_by_kernel(e, 0);
    add_end(e, 0);
    limit_step(e, 4);
    e->step = e->inner_step = e->scheme->first * e->longest;
    e->shift = e->scheme->shift * fmin(e->longest, e->scheme->longest_shift);
    follow(e);
    return DONE;
}

/* The size of a workspace, in numbers of the build's type. */
int64_t evolve_workspace(int64_t samples, int64_t outputs)
{
    struct evolution e;
    return (int64_t)arrange(&e, samples, outputs, NULL);
}

/* The sizes of both structures, by which the caller checks that it has the same ones. */
int64_t evolve_layout(void)
{
    return (int64_t)(sizeof(struct scheme) * 1000 + sizeof(struct problem));
}

/* Evolves one client and returns a status. All memory belongs to the caller. */
int evolve_client(const struct scheme *scheme, struct problem *problem)
{
    struct evolution e = {.scheme = scheme, .problem = problem, .scale = (real)problem->scale};
    arrange(&e, problem->samples, problem->outputs, problem->workspace);
    problem->trials = 0;
    problem->reached = 0;
    enum status status = begin(&e);
    const double end = (double)problem->taus[problem->marks - 1];
    while (status == DONE && e.at[0] < end) {
        const double now = e.at[0], left = end - now, trial = share(left, e.step);
        const double order = scheme->outer_orders[e.count - 1];
        double error;
        status = attempt(&e, trial == left ? end : now + trial, &error);
        if (status != DONE)
            break;
        const double factor = step_factor(scheme, error, order);
        if (error <= 1) {
            e.step = lengthened(e.step, trial, factor);
            limit_step(&e, 1);
        } else {
            e.step = trial * factor;
            problem->reached = now;
            if (!moves(e.step, now))
                status = COLLAPSED;
        }
    }
    return (int)status;
}
