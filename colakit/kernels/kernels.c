/* What a training step on the CPU does besides its large matrix products, each in one pass over memory.
 *
 * Plain C that a compiler turns into vector instructions; `colakit/native/__init__.py` compiles it once for each
 * type that tensors are stored in: `real` is float, or bf16 with -DBF16. All sums are taken in fp32, and no result
 * depends on the number of threads.
 *
 * Letters: B batch, N tokens of all its sentences, T tokens of one, H heads, D width of a head.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define LANES 16                 /* floats that inner loops take at a time: one AVX-512 register, two of AVX2 */
#define MOST_TOKENS 64           /* of attention, which then takes 180 KB of a thread's stack at most */
#define MOST_HEAD_WIDTH 128
#define ROUND_UP(n, step) (((n) + (step) - 1) / (step) * (step))

/* -- types -------------------------------------------------------------------------------------------------- */

#ifdef BF16
typedef uint16_t real;

static inline float load(real stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline real store(float value) { /* to the nearest, ties to even; a NaN of a processor's stays one */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (real)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float real;

static inline float load(real stored) { return stored; }

static inline real store(float value) { return value; }
#endif

/* -- functions of one number -------------------------------------------------------------------------------- */

/* e^x to 5e-7 for |x| ≤ 87, beyond which it stays as it is there: 2^n·e^r with |r| ≤ ln(2)/2, and e^r by its
 * Taylor series. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x; /* a NaN stays one */
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.69314718f;
    float series = 1.0f + r * (1.0f + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r / 720.0f)))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * series;
}

/* 32 random bits for an element, a function of the seed's 64 and the element's number: two rounds of a mixing
 * function ("lowbias32", C. Wellons, 2018), so that neighbours have nothing in common. Seeds are random themselves:
 * two that differed by a little in their low half alone would draw the same, moved by as many elements. */
static inline uint32_t mixed(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t draw(uint64_t seed, uint32_t element) {
    return mixed(mixed(element + (uint32_t)seed) ^ (uint32_t)(seed >> 32));
}

/* 1/(1-p) where the element is kept and 0 where it is dropped; `level` is p·2^32. */
static inline float kept(uint64_t seed, uint32_t element, uint32_t level, float scale) {
    return draw(seed, element) >= level ? scale : 0.0f;
}

/* -- GELU --------------------------------------------------------------------------------------------------- */

/* y = x·s(z) with z = √(8/π)·(x + 0.044715·x³) and s the sigmoid, and its slope s + x·z'·s·(1 - s). */
void gelu(const real *x, real *y, real *slope, int64_t count, int threads) {
    const float linear = 1.5957691216f, cubic = 0.044715f * 1.5957691216f;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float value = load(x[i]), squared = value * value;
        float sigmoid = 1.0f / (1.0f + exponential(-value * (linear + cubic * squared)));
        y[i] = store(value * sigmoid);
        slope[i] = store(sigmoid + value * (linear + 3 * cubic * squared) * sigmoid * (1.0f - sigmoid));
    }
}

/* -- cross-entropy of tokens --------------------------------------------------------------------------------- */

/* nats[n] = log_sums[n] - logits[n, targets[n]], with log_sums[n] = log Σ exp(logits[n]), of (rows, V). */
void cross_entropy(const real *logits, const int64_t *targets, float *nats, float *log_sums, int64_t rows,
                   int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const real *row = logits + n * vocabulary;
        float most = load(row[0]), sum = 0;
        for (int64_t v = 1; v < vocabulary; v++) most = load(row[v]) > most ? load(row[v]) : most;
        for (int64_t v = 0; v < vocabulary; v++) sum += exponential(load(row[v]) - most);
        log_sums[n] = most + logf(sum);
        nats[n] = log_sums[n] - load(row[targets[n]]);
    }
}

/* Logits become the gradient of Σ slopes[n]·nats[n] by them: softmax less one at the target, times the slope. */
void cross_entropy_backward(real *logits, const int64_t *targets, const float *log_sums, const float *slopes,
                            int64_t rows, int64_t vocabulary, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        real *row = logits + n * vocabulary;
        float log_sum = log_sums[n], slope = slopes[n];
        float right = exponential(load(row[targets[n]]) - log_sum) - 1.0f;
        for (int64_t v = 0; v < vocabulary; v++) row[v] = store(slope * exponential(load(row[v]) - log_sum));
        row[targets[n]] = store(slope * right);
    }
}

/* -- dropout into the residual stream ----------------------------------------------------------------------- */

/* y = x + dropped(branch): the stream is fp32 whatever the branch is. */
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

/* -- attention over a few tokens ---------------------------------------------------------------------------- */

typedef float lanes __attribute__((vector_size(sizeof(float) * LANES), aligned(sizeof(float)))); /* GCC and clang */

typedef struct {
    int64_t tokens, width; /* T ≤ MOST_TOKENS, D ≤ MOST_HEAD_WIDTH, a multiple of 4·LANES */
    int64_t padded;        /* T in whole lanes: how far apart the rows of a (T, T) stand */
    float scale;           /* of the scores: 1/√D */
    uint64_t seed;         /* of dropout, as in `kept` */
    uint32_t level;
    float kept_scale;
} Attention;

/* Copies rows (T, D) that stand `stride` apart; returns the place behind them. Matrices of one head stand close
 * together: at fixed, round distances they would displace each other in the cache. */
static float *read_rows(const real *from, int64_t stride, const Attention *a, float *rows) {
    for (int64_t t = 0; t < a->tokens; t++, rows += a->width, from += stride) {
        for (int64_t d = 0; d < a->width; d++) rows[d] = load(from[d]);
        for (int64_t d = 0; d < a->width; d += 64 / (int64_t)sizeof(real)) __builtin_prefetch(from + a->width + d);
    }
    return rows;
}

/* products[i, j] = row i of one · row j of the other for j ≤ i, zero beyond, in whole lanes. */
static void times(const float *one, const float *other, const Attention *a, float *products) {
    for (int64_t i = 0; i < a->tokens; i++, products += a->padded) {
        memset(products, 0, sizeof(float) * (size_t)a->padded);
        for (int64_t j = 0; j <= i; j++) {
            lanes sums = {0};
            for (int64_t d = 0; d < a->width; d += LANES)
                sums += *(const lanes *)(one + i * a->width + d) * *(const lanes *)(other + j * a->width + d);
            float sum = 0;
            for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
            products[j] = sum;
        }
    }
}

/* Row i of the scores becomes its softmax over the keys 0 to i, zero beyond. */
static void softmax(float *scores, const Attention *a) {
    for (int64_t i = 0; i < a->tokens; i++, scores += a->padded) {
        float most = scores[0], sum = 0;
        for (int64_t j = 1; j <= i; j++) most = scores[j] > most ? scores[j] : most;
        for (int64_t j = 0; j < a->padded; j++) {
            float power = exponential((scores[j] - most) * a->scale);
            scores[j] = j <= i ? power : 0.0f;
            sum += scores[j];
        }
        for (int64_t j = 0; j < a->padded; j++) scores[j] /= sum;
    }
}

/* factors[i, j]: what dropout multiplies the probability by. Each pair of a sentence and a head has its own draws. */
static void read_dropout(const Attention *a, int64_t pair, float *factors) {
    uint32_t first = (uint32_t)(pair * MOST_TOKENS * MOST_TOKENS);
    for (int64_t n = 0; n < a->tokens * a->padded; n++)
        factors[n] = kept(a->seed, first + (uint32_t)n, a->level, a->kept_scale);
}

/* to = Σ weights[n · step]·rows[n] over T. Weights of zero are not spared: loops of one length are foreseen. */
static inline void weighted_sum(const float *weights, int64_t step, const float *rows, const Attention *a, real *to) {
    float sums[MOST_HEAD_WIDTH];
    for (int64_t block = 0; block < a->width; block += 4 * LANES) {
        lanes sum[4] = {{0}}; /* four, as each addition waits for the one before it */
        for (int64_t n = 0; n < a->tokens; n++)
            for (int part = 0; part < 4; part++)
                sum[part] += weights[n * step] * ((const lanes *)(rows + n * a->width + block))[part];
        memcpy(sums + block, sum, sizeof sum);
    }
    for (int64_t d = 0; d < a->width; d++) to[d] = store(sums[d]);
}

/* y (N, H, D) = dropped(softmax(q·kᵀ·scale, causal))·v of qkv (N, 3, H, D), each sentence by itself; sentence b has
 * the rows starts[b] to starts[b + 1], the latter left out. */
void attention(const real *qkv, const int64_t *starts, real *y, int64_t batch, int64_t heads, int64_t width,
               float scale, uint64_t seed, uint32_t level, float kept_scale, int threads) {
    int64_t stride = heads * width;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int64_t pair = 0; pair < batch * heads; pair++) {
        int64_t start = starts[pair / heads], tokens = starts[pair / heads + 1] - start;
        Attention a = {tokens, width, ROUND_UP(tokens, LANES), scale, seed, level, kept_scale};
        int64_t square = tokens * a.padded;
        const real *q = qkv + start * 3 * stride + pair % heads * width;
        real *out = y + start * stride + pair % heads * width;
        float room[3 * MOST_TOKENS * MOST_HEAD_WIDTH + 2 * MOST_TOKENS * MOST_TOKENS], *queries = room;
        float *keys = read_rows(q, 3 * stride, &a, queries);
        float *values = read_rows(q + stride, 3 * stride, &a, keys);
        float *probs = read_rows(q + 2 * stride, 3 * stride, &a, values), *factors = probs + square;
        times(queries, keys, &a, probs);
        softmax(probs, &a);
        if (level) {
            read_dropout(&a, pair, factors);
            for (int64_t n = 0; n < square; n++) probs[n] *= factors[n];
        }
        for (int64_t i = 0; i < tokens; i++)
            weighted_sum(probs + i * a.padded, 1, values, &a, out + i * stride);
    }
}

/* grad_qkv (N, 3, H, D) from grad (N, H, D); the probabilities are computed again. */
void attention_backward(const real *qkv, const int64_t *starts, const real *grad, real *grad_qkv, int64_t batch,
                        int64_t heads, int64_t width, float scale, uint64_t seed, uint32_t level, float kept_scale,
                        int threads) {
    int64_t stride = heads * width;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 16)
    for (int64_t pair = 0; pair < batch * heads; pair++) {
        int64_t start = starts[pair / heads], tokens = starts[pair / heads + 1] - start;
        Attention a = {tokens, width, ROUND_UP(tokens, LANES), scale, seed, level, kept_scale};
        int64_t square = tokens * a.padded;
        const real *q = qkv + start * 3 * stride + pair % heads * width;
        const real *upper = grad + start * stride + pair % heads * width;
        real *to = grad_qkv + start * 3 * stride + pair % heads * width;
        float room[4 * MOST_TOKENS * MOST_HEAD_WIDTH + 3 * MOST_TOKENS * MOST_TOKENS], *queries = room;
        float *keys = read_rows(q, 3 * stride, &a, queries);
        float *values = read_rows(q + stride, 3 * stride, &a, keys);
        float *uppers = read_rows(q + 2 * stride, 3 * stride, &a, values);
        float *probs = read_rows(upper, stride, &a, uppers), *factors = probs + square, *slopes = factors + square;
        times(queries, keys, &a, probs);
        softmax(probs, &a);
        times(uppers, values, &a, slopes); /* of the probabilities that dropout let through */
        read_dropout(&a, pair, factors);
        for (int64_t i = 0; i < tokens; i++) {
            float *prob = probs + i * a.padded, *factor = factors + i * a.padded, *slope = slopes + i * a.padded;
            float mean = 0;
            for (int64_t j = 0; j < a.padded; j++) { /* beyond i the probability is zero */
                slope[j] *= factor[j];
                mean += slope[j] * prob[j];
            }
            for (int64_t j = 0; j < a.padded; j++) {
                slope[j] = prob[j] * (slope[j] - mean) * scale;
                prob[j] *= factor[j];
            }
        }
        for (int64_t t = 0; t < tokens; t++, to += 3 * stride) {
            weighted_sum(slopes + t * a.padded, 1, keys, &a, to);
            weighted_sum(slopes + t, a.padded, queries, &a, to + stride);
            weighted_sum(probs + t, a.padded, uppers, &a, to + 2 * stride);
        }
    }
}
