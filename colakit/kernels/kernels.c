/* GELU, cross-entropy, residual dropout, attention and low-rank updates, each in one pass over memory.
 *
 * Letters: B batch, N tokens of all its sentences, T tokens of one, H heads, D width of a head, R rank.
 */
#include "kernels.h"

#define MAX_TOKENS 64 /* of attention, which needs up to 180 KB of stack per thread */
#define ROUND_UP(n, step) (((n) + (step) - 1) / (step) * (step))

/* -- GELU --------------------------------------------------------------------------------------------------- */

/* y = x·s(z) with z = √(8/π)·(x + 0.044715·x³) and s the sigmoid, and its derivative s + x·z'·s·(1 - s). */
void gelu(const real *x, real *y, real *derivative, int64_t count, int threads) {
    const float linear = 1.5957691216f, cubic = 0.044715f * 1.5957691216f;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float value = load(x[i]), squared = value * value;
        float sigmoid = 1.0f / (1.0f + exponential(-value * (linear + cubic * squared)));
        y[i] = store(value * sigmoid);
        derivative[i] = store(sigmoid + value * (linear + 3 * cubic * squared) * sigmoid * (1.0f - sigmoid));
    }
}

/* -- cross-entropy of tokens --------------------------------------------------------------------------------- */

/* nll[n] = log_sums[n] - logits[n, targets[n]], with log_sums[n] = log Σ exp(logits[n]), of (rows, V). */
void cross_entropy(const real *logits, const int64_t *targets, float *nll, float *log_sums, int64_t rows,
                   int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const real *row = logits + n * vocabulary;
        float max = load(row[0]), sum = 0;
        for (int64_t v = 1; v < vocabulary; v++) max = load(row[v]) > max ? load(row[v]) : max;
        for (int64_t v = 0; v < vocabulary; v++) sum += exponential(load(row[v]) - max);
        log_sums[n] = max + logf(sum);
        nll[n] = log_sums[n] - load(row[targets[n]]);
    }
}

/* Overwrites logits with their gradient of Σ grad_nll[n]·nll[n]: (softmax - one_hot(target))·grad_nll. */
void cross_entropy_backward(real *logits, const int64_t *targets, const float *log_sums, const float *grad_nll,
                            int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        real *row = logits + n * vocabulary;
        float log_sum = log_sums[n], scale = grad_nll[n];
        float right = exponential(load(row[targets[n]]) - log_sum) - 1.0f;
        for (int64_t v = 0; v < vocabulary; v++) row[v] = store(scale * exponential(load(row[v]) - log_sum));
        row[targets[n]] = store(scale * right);
    }
}

/* -- dropout into the residual stream ----------------------------------------------------------------------- */

/* y = x + dropout(branch). x and y are the residual stream, always fp32. */
void add_dropped(const float *x, const real *branch, float *y, int64_t count, uint64_t seed, uint32_t level,
                 float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++)
        y[i] = x[i] + load(branch[i]) * kept(seed, (uint32_t)i, level, scale);
}

void add_dropped_backward(const float *grad, real *grad_branch, int64_t count, uint64_t seed, uint32_t level,
                          float scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++)
        grad_branch[i] = store(grad[i] * kept(seed, (uint32_t)i, level, scale));
}

/* -- low-rank products of many adapters --------------------------------------------------------------------- */

#define ROWS 4 /* computed together, so that each element of the factors is read once for them */
#define CHUNK 512 /* elements of each row that are converted to fp32 at a time; a multiple of LANES */
#define MAX_RANK 256

typedef struct {
    int64_t start, stop, rank; /* R ≤ MAX_RANK */
    const real *down, *up;     /* (R, inputs) and (R, outputs) */
} Group;

/* inner[r, i] = down[r] · x[i], for `rows` ≤ ROWS rows of x (rows, inputs). */
static void multiply_down(const Group *group, const real *x, int64_t rows, int64_t inputs, float *inner) {
    float converted[ROWS * CHUNK] = {0};
    memset(inner, 0, sizeof(float) * (size_t)(group->rank * ROWS));
    for (int64_t first = 0; first < inputs; first += CHUNK) {
        int64_t length = inputs - first < CHUNK ? inputs - first : CHUNK;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t d = 0; d < length; d++) converted[i * CHUNK + d] = load(x[i * inputs + first + d]);
        for (int64_t r = 0; r < group->rank; r++) {
            lanes sums[ROWS] = {{0}};
            for (int64_t d = 0; d < length; d += LANES) {
                lanes factor = load_lanes(group->down + r * inputs + first + d);
                for (int i = 0; i < ROWS; i++) sums[i] += factor * *(const lanes *)(converted + i * CHUNK + d);
            }
            for (int i = 0; i < ROWS; i++) inner[r * ROWS + i] += sum_of(sums[i]);
        }
    }
}

/* y[i] += Σ inner[r, i]·up[r] over R, for `rows` ≤ ROWS rows of y (rows, outputs). */
static void multiply_up(const Group *group, const float *inner, int64_t rows, int64_t outputs, real *y) {
    for (int64_t d = 0; d < outputs; d += LANES) {
        lanes sums[ROWS] = {{0}};
        for (int64_t r = 0; r < group->rank; r++) {
            lanes factor = load_lanes(group->up + r * outputs + d);
            for (int i = 0; i < ROWS; i++) sums[i] += inner[r * ROWS + i] * factor;
        }
        for (int64_t i = 0; i < rows; i++) {
            float *sum = (float *)&sums[i];
            for (int lane = 0; lane < LANES; lane++) {
                real *to = y + i * outputs + d + lane;
                *to = store(load(*to) + sum[lane]);
            }
        }
    }
}

/* y[n] += (x[n]·downᵀ)·up for the rows n of each group, start (inclusive) to stop (exclusive); inputs and outputs are
 * multiples of LANES. */
void add_low_rank(const real *x, real *y, const Group *groups, int64_t num_groups, int64_t inputs, int64_t outputs,
                  int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t g = 0; g < num_groups; g++)
        for (int64_t n = groups[g].start; n < groups[g].stop; n += ROWS) {
            int64_t rows = groups[g].stop - n < ROWS ? groups[g].stop - n : ROWS;
            float inner[MAX_RANK * ROWS];
            multiply_down(groups + g, x + n * inputs, rows, inputs, inner);
            multiply_up(groups + g, inner, rows, outputs, y + n * outputs);
        }
}

/* -- attention over a few tokens ---------------------------------------------------------------------------- */

typedef struct {
    int64_t heads, width; /* H and D; D ≤ MAX_HEAD_WIDTH, a multiple of 4·LANES */
    float scale;          /* of the scores: 1/√D */
    uint64_t seed;        /* of dropout, as in `kept` */
    uint32_t level;
    float kept_scale;
    int64_t tokens, padded; /* T ≤ MAX_TOKENS; rounded up to LANES, the row stride of the (T, T) matrices */
    int64_t first, first_of_qkv; /* index of the head's first element in (N, H, D) and in (N, 3, H, D) */
} Attention;

/* Copies rows (T, D) with the given stride; returns the end of the copy. One head's matrices are stored adjacently:
 * at fixed power-of-two distances they would evict each other from the cache. */
static float *read_rows(const real *from, int64_t stride, const Attention *a, float *rows) {
    for (int64_t t = 0; t < a->tokens; t++, rows += a->width, from += stride) {
        for (int64_t d = 0; d < a->width; d++) rows[d] = load(from[d]);
        for (int64_t d = 0; d < a->width; d += 64 / (int64_t)sizeof(real)) __builtin_prefetch(from + a->width + d);
    }
    return rows;
}

/* Sets `a` to head pair % H of sentence pair / H; reads its queries, keys and values into `rows`, returns their end. */
static float *read_head(const real *qkv, const int64_t *starts, int64_t pair, Attention *a, float *rows) {
    int64_t start = starts[pair / a->heads], stride = a->heads * a->width, column = pair % a->heads * a->width;
    a->tokens = starts[pair / a->heads + 1] - start;
    a->padded = ROUND_UP(a->tokens, LANES);
    a->first = start * stride + column;
    a->first_of_qkv = start * 3 * stride + column;
    for (int part = 0; part < 3; part++)
        rows = read_rows(qkv + a->first_of_qkv + part * stride, 3 * stride, a, rows);
    return rows;
}

/* products[i, j] = one[i] · other[j] for j ≤ i, else zero; rows have length `padded`. */
static void times(const float *one, const float *other, const Attention *a, float *products) {
    for (int64_t i = 0; i < a->tokens; i++, products += a->padded) {
        memset(products, 0, sizeof(float) * (size_t)a->padded);
        for (int64_t j = 0; j <= i; j++) {
            lanes sums = {0};
            for (int64_t d = 0; d < a->width; d += LANES)
                sums += *(const lanes *)(one + i * a->width + d) * *(const lanes *)(other + j * a->width + d);
            products[j] = sum_of(sums);
        }
    }
}

/* Causal softmax in place: row i over keys 0 to i, else zero. */
static void softmax(float *scores, const Attention *a) {
    for (int64_t i = 0; i < a->tokens; i++, scores += a->padded) {
        float max = scores[0], sum = 0;
        for (int64_t j = 1; j <= i; j++) max = scores[j] > max ? scores[j] : max;
        for (int64_t j = 0; j < a->padded; j++) {
            float power = exponential((scores[j] - max) * a->scale);
            scores[j] = j <= i ? power : 0.0f;
            sum += scores[j];
        }
        for (int64_t j = 0; j < a->padded; j++) scores[j] /= sum;
    }
}

/* factors[i, j] = dropout's factor of the probability; every (sentence, head) pair has its own random bits. */
static void read_dropout(const Attention *a, int64_t pair, float *factors) {
    uint32_t first = (uint32_t)(pair * MAX_TOKENS * MAX_TOKENS);
    for (int64_t n = 0; n < a->tokens * a->padded; n++)
        factors[n] = kept(a->seed, first + (uint32_t)n, a->level, a->kept_scale);
}

/* to = Σ weights[n · step]·rows[n] over T. Zero weights are included: loops of constant length predict well. */
static inline void weighted_sum(const float *weights, int64_t step, const float *rows, const Attention *a, real *to) {
    float sums[MAX_HEAD_WIDTH];
    for (int64_t block = 0; block < a->width; block += 4 * LANES) {
        lanes sum[4] = {{0}}; /* four independent sums hide the latency of additions */
        for (int64_t n = 0; n < a->tokens; n++)
            for (int part = 0; part < 4; part++)
                sum[part] += weights[n * step] * ((const lanes *)(rows + n * a->width + block))[part];
        memcpy(sums + block, sum, sizeof sum);
    }
    for (int64_t d = 0; d < a->width; d++) to[d] = store(sums[d]);
}

/* y (N, H, D) = dropout(softmax(q·kᵀ·scale, causal))·v of qkv (N, 3, H, D) within each sentence; sentence b is rows
 * starts[b] (inclusive) to starts[b + 1] (exclusive). */
void attention(const real *qkv, const int64_t *starts, real *y, int64_t batch, int64_t heads, int64_t width,
               float scale, uint64_t seed, uint32_t level, float kept_scale, int threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int64_t pair = 0; pair < batch * heads; pair++) {
        Attention a = {heads, width, scale, seed, level, kept_scale, 0, 0, 0, 0};
        float queries[3 * MAX_TOKENS * MAX_HEAD_WIDTH + 2 * MAX_TOKENS * MAX_TOKENS];
        float *probs = read_head(qkv, starts, pair, &a, queries);
        int64_t size = a.tokens * width, square = a.tokens * a.padded;
        float *keys = queries + size, *values = keys + size, *factors = probs + square;
        times(queries, keys, &a, probs);
        softmax(probs, &a);
        if (level) {
            read_dropout(&a, pair, factors);
            for (int64_t n = 0; n < square; n++) probs[n] *= factors[n];
        }
        for (int64_t i = 0; i < a.tokens; i++)
            weighted_sum(probs + i * a.padded, 1, values, &a, y + a.first + i * heads * width);
    }
}

/* grad_qkv (N, 3, H, D) from grad (N, H, D); the probabilities are recomputed. */
void attention_backward(const real *qkv, const int64_t *starts, const real *grad, real *grad_qkv, int64_t batch,
                        int64_t heads, int64_t width, float scale, uint64_t seed, uint32_t level, float kept_scale,
                        int threads) {
    int64_t stride = heads * width;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int64_t pair = 0; pair < batch * heads; pair++) {
        Attention a = {heads, width, scale, seed, level, kept_scale, 0, 0, 0, 0};
        float queries[4 * MAX_TOKENS * MAX_HEAD_WIDTH + 3 * MAX_TOKENS * MAX_TOKENS];
        float *grads = read_head(qkv, starts, pair, &a, queries);
        float *probs = read_rows(grad + a.first, stride, &a, grads);
        int64_t size = a.tokens * width, square = a.tokens * a.padded;
        float *keys = queries + size, *values = keys + size, *factors = probs + square, *grad_scores = factors + square;
        times(queries, keys, &a, probs);
        softmax(probs, &a);
        times(grads, values, &a, grad_scores); /* gradient of the probabilities after dropout */
        read_dropout(&a, pair, factors);
        for (int64_t i = 0; i < a.tokens; i++) {
            float *prob_row = probs + i * a.padded, *factor_row = factors + i * a.padded, *grad_row = grad_scores + i * a.padded;
            float mean = 0;
            for (int64_t j = 0; j < a.padded; j++) { /* prob_row[j] is zero for j > i */
                grad_row[j] *= factor_row[j];
                mean += grad_row[j] * prob_row[j];
            }
            for (int64_t j = 0; j < a.padded; j++) {
                grad_row[j] = prob_row[j] * (grad_row[j] - mean) * scale;
                prob_row[j] *= factor_row[j];
            }
        }
        real *to = grad_qkv + a.first_of_qkv;
        for (int64_t t = 0; t < a.tokens; t++, to += 3 * stride) {
            weighted_sum(grad_scores + t * a.padded, 1, keys, &a, to);
            weighted_sum(grad_scores + t, a.padded, queries, &a, to + stride);
            weighted_sum(probs + t, a.padded, grads, &a, to + 2 * stride);
        }
    }
}
