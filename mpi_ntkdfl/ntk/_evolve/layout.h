/* Types of numbers, sizes, and the memory of an evolution.
 *
 * The samples are cut into tiles of TILE samples. The last tile is padded with samples whose rows and
 * columns of the kernel are zero. An array [output, sample] is one slot of every tile, [output][TILE]:
 *
 *     tiles[tile][slot][output][TILE]
 *
 * All arrays of a tile are then next to each other in memory, and every loop over the samples of a tile
 * has the same constant length. The kernel is cut into blocks [TILE][TILE]. */

#ifndef EVOLVE_LAYOUT_H
#define EVOLVE_LAYOUT_H

#include <math.h>
#include <stddef.h>
#include <string.h>

#include "../../runtime/_vectors.h"

enum {
    TILE = 64,  /* samples per tile */
    RANK = 32,  /* rows of F at most */
    STAGES = 6, /* of the Runge-Kutta pair; the last one gives the result */
    ENDS = 3,   /* ends of outer steps from which R is extrapolated */
    TERMS = 2 * ENDS,
    POWERS = 5, /* theta^0 to theta^4, for the left sums */
};

/* Products of matrices keep STRIP_ROWS x 2 vectors in registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
enum { STRIP_ROWS = 10 };
#else
enum { STRIP_ROWS = 5 };
#endif

/* Constants of the scheme; compiled.py fills them in from scheme.py, where they are explained. */
struct scheme {
    double mean_over_end, stable, safety, shrink, grow, first, shift, longest_shift;
    double inner_order, outer_orders[ENDS];
    double stages[STAGES][STAGES], error[STAGES + 1];
    double left_sum[POWERS][POWERS], power_sums[POWERS][POWERS + 1];
    double least_in_basis, least_in_factor;
    int64_t rank, passes, most_trials;
};

/* The problem of one client. Its arrays have no padding: kernel [sample][sample], initial and targets
 * [sample][output], start [min(rank, sample)][sample]. The taus are ascending. */
struct problem {
    int64_t samples, outputs, marks;
    const real *kernel, *initial, *targets, *start;
    const int64_t *taus;
    double scale, inner_bound, outer_bound; /* c = lr / samples; bounds of the local errors */
    real *workspace;                        /* evolve_workspace() numbers, aligned to a cache line */
    real *sums_at, *outputs_at;             /* results: S and f at the taus, [tau][sample][output] */
    int64_t products, trials;               /* results: columns multiplied by K; inner steps tried */
    double reached;                         /* result: u at the end of the last accepted step */
};

enum status { DONE, NOT_FINITE, COLLAPSED, TOO_MANY };

/* Slots of a tile. */
enum {
    INITIAL,               /* f(0) */
    TARGET,                /* Y */
    SUM,                   /* left sums of g, two slots: at the newest end, and in the step being tried */
    STATE = SUM + 2,       /* three states of STATE_SLOTS each */
    GAINED = STATE + 3 * 4,    /* sum_j b_j g_j of the inner step being tried */
    PATH,                  /* coefficients of f(0) - R as a polynomial: the path */
    END = PATH + TERMS,    /* gain of R over the step to an end, and R' there: ENDS ends and a new one */
    FACTORS = END + 2 * (ENDS + 1), /* the gain of z, and g: factors of the product with K' */
    MISSED = FACTORS + 2,  /* the path's error at the end of an outer step */
    DRIFT,                 /* the derivative of this error */
    SLOTS
};
/* Slots of a state: z, f, softmax(f) and dg/du. */
enum { Z, F, P, BEND, STATE_SLOTS };

struct evolution {
    const struct scheme *scheme;
    struct problem *problem;
    int outputs, tiles;
    size_t slot;               /* numbers per slot, outputs * TILE */
    real scale;                /* c */
    real *blocks;              /* K, then K' [tile of columns][tile of rows][TILE][TILE] */
    real *factor, *transposed; /* F [tile][RANK][TILE] and F^T [tile][TILE][RANK] */
    real *all;                 /* the slots */
    real *scratch[3];          /* scratch memory, each for two slots or for RANK rows of a tile */
    real *rates;               /* a' = F g at the stages [STAGES + 1][output][RANK] */
    real *fast[3];             /* a of the three states [output][RANK] */
    real *stage, *direction, *image; /* a of a stage; the power iteration's arrays; [output][RANK] */
    int turns;                 /* whether direction holds an iterate of the power iteration */
    int newest, spare[2];      /* numbers of states: the one at the newest end, and two free ones */
    int sum;                   /* which of the two SUM slots belongs to the newest end */
    int ends[ENDS + 1], count; /* places of the ends, the newest first; number of ends so far */
    double at[ENDS];           /* u of the ends */
    double shift, unit;        /* of the logarithm in which the path is a polynomial */
    double step, inner_step, longest;
};

INLINE real *slot_of(const struct evolution *e, int tile, int slot)
{
    return e->all + ((size_t)tile * SLOTS + (size_t)slot) * e->slot;
}

INLINE real *state_of(const struct evolution *e, int tile, int state, int part)
{
    return slot_of(e, tile, STATE + state * STATE_SLOTS + part);
}

#endif
