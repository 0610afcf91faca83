/* Local steps of one client's multilayer perceptron by SGD, on one thread of a CPU.
 *
 * training.py explains the two forms of the steps. A batch has 10 to 25 samples, so in tensors most of
 * the time is spent on calls. Here a round of a client is one call.
 *
 * Layout. Widths of layers are padded to whole cache lines (batched.py). The weights of a layer above the
 * first are [output][input], and its inputs have a column of ones for the bias. The first layer is
 * either the coefficients A [sample][output] of the dual form, or its weights as [input][output].
 *
 * Bits. All sums are taken in the same order for every width of the vectors, and products are added by
 * fused operations only. So all builds agree in every bit, and a client's bits depend on nothing else.
 */

#include "../../runtime/_vectors.h"

#include <stddef.h>
#include <string.h>

/* Products keep ROWS x VECTORS vectors of the result in registers. */
enum { ROWS = 6, VECTORS = VECTOR_BYTES == 32 ? 2 : 4 };

struct layer {
    int64_t inputs, width; /* inputs with padding; outputs without it */
    int64_t padded;        /* outputs with padding */
    float *weights;        /* [output][input] with padding */
};

/* One client's round. Arrays of samples have one row per sample; `order` is [epoch][sample]. */
struct round {
    int64_t samples, batch, epochs, classes;
    const int64_t *order, *labels;
    const float *shift; /* added to the outputs [class], or NULL */
    double lr, momentum, decay;
    int64_t width, padded; /* outputs of the first layer, without and with padding */
    int64_t depth;         /* numbers per row of `rows`: samples in the dual form, else inputs */
    const float *rows;     /* rows of the Gram matrix, or inputs with their column of ones */
    int64_t stride;        /* of `rows` */
    const float *start;    /* dual form: first layer's outputs at the start [sample][padded]; else NULL */
    float *first;          /* A [sample][padded], or the first layer's weights [input][padded] */
    double scale;          /* dual form, result: the factor of the starting weights */
    int64_t layers;        /* above the first */
    const struct layer *upper;
    float *workspace;
};

/* ------------------------------------------------------------------------- products of matrices */

/* A matrix whose entry (row, k) is at[row * down + k * right]. */
struct factor {
    const float *at;
    int64_t down, right;
};

/* out = keep * out + times * a b for a few rows and vectors, whose sums stay in registers. */
INLINE void tile(const int rows, const int vectors, int64_t depth, struct factor a, const float *b,
                 int64_t b_stride, float *out, int64_t stride, float keep, float times)
{
    vector sums[ROWS][VECTORS];
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++)
            sums[r][v] = (vector){0};
    for (int64_t k = 0; k < depth; k++) {
        const vector *row = (const vector *)(b + k * b_stride);
#pragma GCC unroll 6
        for (int r = 0; r < rows; r++) {
            const vector entry = a.at[r * a.down + k * a.right] - (vector){0};
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++)
                sums[r][v] = fused(entry, row[v], sums[r][v]);
        }
    }
    const vector t = times - (vector){0};
#pragma GCC unroll 6
    for (int r = 0; r < rows; r++) {
        vector *to = (vector *)(out + r * stride);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
            if (keep == 0)
                to[v] = t * sums[r][v];
            else
                to[v] = fused(t, sums[r][v], keep * to[v]);
        }
    }
}

/* out [rows][columns] = keep * out + times * a b, with `columns` a multiple of a cache line.
 *
 * Without `keep` what was in out does not matter. Rows of b and of out have the same length. */
static void product(int64_t rows, int64_t depth, int64_t columns, struct factor a, const float *b,
                    float *out, float keep, float times)
{
    const int64_t tiles = (rows + ROWS - 1) / ROWS, most = tiles ? (rows + tiles - 1) / tiles : 0;
    for (int64_t column = 0; column < columns;) {
        const int64_t left = (columns - column) / LANES, vectors = left < VECTORS ? left : VECTORS;
        for (int64_t row = 0; row < rows; row += most) {
            const int64_t count = rows - row < most ? rows - row : most;
            const struct factor part = {a.at + row * a.down, a.down, a.right};
            float *to = out + row * columns + column;
            /* Both numbers are constants in every case, so that all sums stay in registers. */
#define CASE(r, v)                                                                                  \
    case 8 * r + v:                                                                                 \
        tile(r, v, depth, part, b + column, columns, to, columns, keep, times);                     \
        break;
#define CASES(v) CASE(1, v) CASE(2, v) CASE(3, v) CASE(4, v) CASE(5, v) CASE(6, v)
            switch (8 * count + vectors) {
                CASES(2)
#if !defined(__AVX2__) || defined(__AVX512F__)
                CASES(1) CASES(3) CASES(4)
#endif
            }
#undef CASES
#undef CASE
        }
        column += vectors * LANES;
    }
}

/* --------------------------------------------------------------------------------------- the loss */

/* e^x for x <= 0, with an error of a few units in the last place. NaN stays NaN. See ntk/_evolve/softmax.h. */
INLINE float exponential(float x)
{
    static const float inverse_factorials[] = {1, 1, 1 / 2.0f, 1 / 6.0f, 1 / 24.0f, 1 / 120.0f, 1 / 720.0f};
    x = x < -64 ? -64 : x;
    /* This sum has no bits for a fraction, so its lowest bits are x / log(2), rounded. */
    const float rounder = 0x1.8p23f, shifted = x * 0x1.715476p0f + rounder, n = shifted - rounder;
    const float r = (x - n * 0x1.62e4p-1f) - n * 0x1.7f7d1cp-20f;
    float value = inverse_factorials[6];
#pragma GCC unroll 6
    for (int k = 5; k >= 0; k--)
        value = value * r + inverse_factorials[k];
    uint32_t whole;
    memcpy(&whole, &shifted, sizeof whole);
    whole = (whole + 127) << 23;
    float power;
    memcpy(&power, &whole, sizeof power);
    return value * power;
}

/* Replaces one sample's outputs by the gradient share * (softmax(outputs + shift) - target). */
static void loss_signal(int64_t classes, int64_t padded, float *outputs, const float *shift,
                        int64_t label, float share)
{
    float most = -__builtin_inff(), total = 0;
    for (int64_t c = 0; c < classes; c++) {
        outputs[c] += shift ? shift[c] : 0;
        most = outputs[c] > most ? outputs[c] : most;
    }
    for (int64_t c = 0; c < padded; c++)
        outputs[c] = exponential(outputs[c] - most);
    for (int64_t c = 0; c < classes; c++)
        total += outputs[c];
    const float inverse = 1 / total;
    for (int64_t c = 0; c < classes; c++)
        outputs[c] = (outputs[c] * inverse - (c == label)) * share;
    for (int64_t c = classes; c < padded; c++)
        outputs[c] = 0;
}

/* -------------------------------------------------------------------------------------- the steps */

/* What a round keeps in its workspace. */
struct space {
    float *rows;           /* of the batch [batch][depth] */
    float *values[2];      /* signals of a layer, and of the layer below [batch][widest] */
    float *hidden;         /* inputs of the layers above the first, one array [batch][input] per layer */
    float *turned;         /* their weights as [input][output] */
    float *velocities;     /* of the weights above the first */
    float *velocity;       /* of the first layer */
};

static int64_t first_size(const struct round *r)
{
    return r->depth * r->padded;
}

static int64_t upper_size(const struct layer *l)
{
    return l->padded * l->inputs;
}

/* Places the parts of the workspace and returns their size. */
static int64_t lay_out(const struct round *r, struct space *s)
{
    int64_t widest = r->padded, inputs = 0, weights = 0, at = 0;
    for (int64_t l = 0; l < r->layers; l++) {
        widest = r->upper[l].padded > widest ? r->upper[l].padded : widest;
        widest = r->upper[l].inputs > widest ? r->upper[l].inputs : widest;
        inputs += r->upper[l].inputs;
        weights += upper_size(r->upper + l);
    }
    s->rows = r->workspace + at, at += r->batch * ((r->depth + 15) / 16 * 16);
    s->values[0] = r->workspace + at, at += r->batch * widest;
    s->values[1] = r->workspace + at, at += r->batch * widest;
    s->hidden = r->workspace + at, at += r->batch * inputs;
    s->turned = r->workspace + at, at += weights;
    s->velocities = r->workspace + at, at += r->momentum ? weights : 0;
    s->velocity = r->workspace + at, at += r->momentum ? first_size(r) : 0;
    return at;
}

static void turn(const struct layer *l, float *turned)
{
    for (int64_t o = 0; o < l->padded; o++)
        for (int64_t i = 0; i < l->inputs; i++)
            turned[i * l->padded + o] = l->weights[o * l->inputs + i];
}

/* The layer's inputs from the outputs of the one below: a ReLU, and 1 for the bias. */
static void open(int64_t count, int64_t width, int64_t padded, const float *outputs, float *inputs)
{
    for (int64_t i = 0; i < count * padded; i++)
        inputs[i] = outputs[i] < 0 ? 0 : outputs[i];
    for (int64_t b = 0; b < count; b++)
        inputs[b * padded + width] = 1;
}

/* weights = weights - lr * velocity, with the velocity of this step. */
static void move(int64_t size, float *weights, float *velocity, double lr, double decay)
{
    const float rate = (float)lr, pull = (float)decay;
    for (int64_t i = 0; i < size; i++) {
        velocity[i] += pull * weights[i];
        weights[i] -= rate * velocity[i];
    }
}

/* Adds times * a b to the weights as SGD does; `fresh` says that the velocity is still 0. */
static void descend(const struct round *r, int fresh, int64_t rows, int64_t depth, int64_t columns,
                    struct factor a, const float *b, float *weights, float *velocity)
{
    if (!r->momentum) {
        product(rows, depth, columns, a, b, weights, (float)(1 - r->lr * r->decay), (float)-r->lr);
        return;
    }
    product(rows, depth, columns, a, b, velocity, fresh ? 0 : (float)r->momentum, 1);
    move(rows * columns, weights, velocity, r->lr, r->decay);
}

/* A's step: the signals are added to the rows of the batch's samples. */
static void dual_step(struct round *r, const int64_t *batch, int64_t count, const float *signals,
                      float *velocity, double *scale_velocity)
{
    const int64_t size = first_size(r);
    const double keep = r->momentum ? r->momentum : 1 - r->lr * r->decay;
    float *into = r->momentum ? velocity : r->first;
    const float times = r->momentum ? 1 : (float)-r->lr;
    if (keep != 1)
        for (int64_t i = 0; i < size; i++)
            into[i] *= (float)keep;
    for (int64_t b = 0; b < count; b++)
        for (int64_t i = 0; i < r->padded; i++)
            into[batch[b] * r->padded + i] += times * signals[b * r->padded + i];
    if (!r->momentum) {
        r->scale *= keep;
        return;
    }
    *scale_velocity = r->momentum * *scale_velocity + r->decay * r->scale;
    move(size, r->first, velocity, r->lr, r->decay);
    r->scale -= r->lr * *scale_velocity;
}

/* One step on a batch of `count` samples. */
static void step(struct round *r, const struct space *s, const int64_t *batch, int64_t count, int fresh,
                 double *scale_velocity)
{
    float *values = s->values[0], *below = s->values[1];
    const struct factor rows = {s->rows, r->depth, 1}, columns = {s->rows, 1, r->depth};
    for (int64_t b = 0; b < count; b++) {
        memcpy(s->rows + b * r->depth, r->rows + batch[b] * r->stride, (size_t)r->depth * sizeof(float));
        for (int64_t i = 0; r->start && i < r->padded; i++)
            values[b * r->padded + i] = (float)r->scale * r->start[batch[b] * r->padded + i];
    }
    product(count, r->depth, r->padded, rows, r->first, values, r->start != NULL, 1);
    float *inputs = s->hidden, *turned = s->turned;
    int64_t width = r->width, padded = r->padded;
    for (const struct layer *l = r->upper; l < r->upper + r->layers; l++) {
        open(count, width, padded, values, inputs);
        const struct factor a = {inputs, l->inputs, 1};
        product(count, width + 1, l->padded, a, turned, values, 0, 1);
        inputs += r->batch * l->inputs, turned += upper_size(l);
        width = l->width, padded = l->padded;
    }
    for (int64_t b = 0; b < count; b++)
        loss_signal(r->classes, padded, values + b * padded, r->shift, r->labels[batch[b]], 1 / (float)count);
    float *velocities = s->velocities;
    for (const struct layer *l = r->upper; l < r->upper + r->layers; l++)
        velocities += r->momentum ? upper_size(l) : 0;
    for (const struct layer *l = r->upper + r->layers; l-- > r->upper;) {
        const int64_t lower = l > r->upper ? l[-1].width : r->width;
        inputs -= r->batch * l->inputs, turned -= upper_size(l);
        velocities -= r->momentum ? upper_size(l) : 0;
        const struct factor signals = {values, l->padded, 1}, across = {values, 1, l->padded};
        product(count, l->width, l->inputs, signals, l->weights, below, 0, 1);
        for (int64_t i = 0; i < count * l->inputs; i++)
            below[i] = inputs[i] <= 0 ? 0 : below[i];
        for (int64_t b = 0; b < count; b++)
            below[b * l->inputs + lower] = 0;
        descend(r, fresh, l->width, count, l->inputs, across, inputs, l->weights, velocities);
        turn(l, turned);
        float *swap = values;
        values = below, below = swap;
    }
    if (r->start)
        dual_step(r, batch, count, values, s->velocity, scale_velocity);
    else
        descend(r, fresh, r->depth, count, r->padded, columns, values, r->first, s->velocity);
}

/* ------------------------------------------------------------------------------------ the interface */

/* Tells compiled_training.py whether it has the same structures. */
int64_t training_layout(void)
{
    return (int64_t)(1000 * sizeof(struct round) + sizeof(struct layer));
}

/* Numbers of the workspace. */
int64_t training_workspace(const struct round *r)
{
    struct space s;
    struct round nowhere = *r;
    nowhere.workspace = NULL;
    return lay_out(&nowhere, &s);
}

/* Takes all steps of a round. */
void training_round(struct round *r)
{
    struct space s;
    double scale_velocity = 0;
    memset(r->workspace, 0, (size_t)lay_out(r, &s) * sizeof(float));
    float *turned = s.turned;
    for (int64_t l = 0; l < r->layers; turned += upper_size(r->upper + l++))
        turn(r->upper + l, turned);
    int fresh = 1;
    for (int64_t epoch = 0; epoch < r->epochs; epoch++)
        for (int64_t at = 0; at < r->samples; at += r->batch, fresh = 0) {
            const int64_t left = r->samples - at, count = left < r->batch ? left : r->batch;
            step(r, &s, r->order + epoch * r->samples + at, count, fresh, &scale_velocity);
        }
}
