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
 * Layout. The samples are cut into tiles of TILE samples. The last tile is padded with samples whose
 * rows and columns of the kernel are zero. An array [output, sample] is one slot of every tile,
 * [output][TILE]:
 *
 *     tiles[tile][slot][output][TILE]
 *
 * All arrays of a tile are then next to each other in memory, and every loop over the samples of a
 * tile has the same constant length. The kernel is cut into blocks [TILE][TILE].
 *
 * Bits. The result does not depend on the width of the processor's vectors. Every sum over outputs,
 * samples or ranks is taken in the same order for every width, and the build forbids the compiler to
 * contract a product and a sum into one operation. This file is compiled once per instruction set
 * and per type of number, and all builds of one type agree in every bit.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __FAST_MATH__
#error "the order of floating-point operations must be kept: compile without -ffast-math"
#endif

#ifdef EVOLVE_DOUBLE
typedef double real;
typedef uint64_t bits;
enum { MANTISSA = 52, BIAS = 1023, EXP_TERMS = 13 };
#define LOG2_HIGH 0x1.62e42feep-1 /* log 2 in so few bits that products with small integers are exact */
#define LOG2_LOW 0x1.a39ef35793c76p-33
#else
typedef float real;
typedef uint32_t bits;
enum { MANTISSA = 23, BIAS = 127, EXP_TERMS = 7 };
#define LOG2_HIGH 0x1.62e4p-1f
#define LOG2_LOW 0x1.7f7d1cp-20f
#endif

enum {
    TILE = 64,  /* samples per tile */
    RANK = 32,  /* rows of F at most */
    STAGES = 6, /* of the Runge-Kutta pair; the last one gives the result */
    ENDS = 3,   /* ends of outer steps from which R is extrapolated */
    TERMS = 2 * ENDS,
    POWERS = 5, /* theta^0 to theta^4, for the left sums */
};

/* Vectors as wide as the processor's. Products of matrices keep STRIP_ROWS x 2 of them in registers. */
#if defined(__AVX512F__)
enum { VECTOR_BYTES = 64, STRIP_ROWS = 10 };
#elif defined(__AVX__)
enum { VECTOR_BYTES = 32, STRIP_ROWS = 5 };
#elif defined(__aarch64__)
enum { VECTOR_BYTES = 16, STRIP_ROWS = 10 };
#else
enum { VECTOR_BYTES = 16, STRIP_ROWS = 5 };
#endif
typedef real vector __attribute__((vector_size(VECTOR_BYTES), may_alias));
enum { LANES = VECTOR_BYTES / sizeof(real) };

#define INLINE static inline __attribute__((always_inline))

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

/* ------------------------------------------------------------------------- products of matrices */

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
            const real factor = a[(size_t)r * (size_t)stride + (size_t)k];
            sums[r][0] += factor * left;
            sums[r][1] += factor * right;
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

/* ------------------------------------------------------------------- softmax and its derivative */

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

/* ------------------------------------------------------------------------------ the factor of K */

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

/* ---------------------------------------------------------------------------------- outer steps */

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

/* -------------------------------------------------------------------- functions that Python calls */

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

/* Whether the processor has the instructions of a level of x86-64: 2, 3 or 4. */
int evolve_runs(int level)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    const int two = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
    const int three = two && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    const int four = three && __builtin_cpu_supports("avx512f") &&
                     __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return level <= 2 ? two : level == 3 ? three : four;
#else
    (void)level;
    return 0;
#endif
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
