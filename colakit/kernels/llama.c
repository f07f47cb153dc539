/* RMSNorm, rotary positions and SwiGLU of the Llama family, each in one pass over memory.
 *
 * Letters: N tokens of all sentences, D width of the model, H query heads, K heads of keys and values, d width of a
 * head.
 */
#include "kernels.h"

#define BLOCK_ROWS 32 /* rows whose gradient of the norm's weight is one partial sum, whatever the number of threads */

/* -- RMSNorm ------------------------------------------------------------------------------------------------ */

/* y = x·scales·weight of the residual stream x (N, D) fp32, with scales (N,) = 1/√(mean(x²) + epsilon). */
void rms_norm(const float *x, const float *weight, real *y, float *scales, int64_t rows, int64_t width, float epsilon,
              int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const float *from = x + n * width;
        float sum = 0;
        for (int64_t d = 0; d < width; d++) sum += from[d] * from[d];
        float scale = scales[n] = 1.0f / sqrtf(sum / (float)width + epsilon);
        for (int64_t d = 0; d < width; d++) y[n * width + d] = store(from[d] * scale * weight[d]);
    }
}

/* grad_x (N, D), and the sums of weight's gradient over every BLOCK_ROWS rows, partial_sums (⌈N / BLOCK_ROWS⌉, D). */
void rms_norm_backward(const float *x, const float *weight, const float *scales, const real *grad, float *grad_x,
                       float *partial_sums, int64_t rows, int64_t width, int threads) {
    int64_t blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
        float *sums = partial_sums + block * width;
        memset(sums, 0, sizeof(float) * (size_t)width);
        int64_t end = (block + 1) * BLOCK_ROWS < rows ? (block + 1) * BLOCK_ROWS : rows;
        for (int64_t n = block * BLOCK_ROWS; n < end; n++) {
            const float *from = x + n * width;
            const real *grad_row = grad + n * width;
            float scale = scales[n], dot = 0;
            for (int64_t d = 0; d < width; d++) dot += load(grad_row[d]) * weight[d] * from[d];
            float shrink = dot * scale * scale / (float)width;
            for (int64_t d = 0; d < width; d++) {
                float value = load(grad_row[d]);
                sums[d] += value * from[d] * scale;
                grad_x[n * width + d] = scale * (value * weight[d] - from[d] * shrink);
            }
        }
    }
}

/* -- rotary positions --------------------------------------------------------------------------------------- */

/* Rotates the pairs (i, i + d/2) of one head by angles with these cosines and sines (d,); `sign` -1 rotates back. */
static inline void rotate(const float *from, const float *cosines, const float *sines, float sign, real *to,
                          int64_t width) {
    int64_t half = width / 2;
    for (int64_t i = 0; i < half; i++) {
        float first = from[i], second = from[i + half];
        to[i] = store(first * cosines[i] - sign * second * sines[i]);
        to[i + half] = store(second * cosines[i] + sign * first * sines[i]);
    }
}

/* qkv (N, 3, H, d) = rotated queries (N, H, d), rotated keys and values (N, K, d), of which H/K query heads share one.
 * cosines and sines are (N, d). */
void rotate_heads(const real *queries, const real *keys, const real *values, const float *cosines, const float *sines,
                  real *qkv, int64_t rows, int64_t heads, int64_t shared_heads, int64_t width, int threads) {
    int64_t group = heads / shared_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const float *cosine = cosines + n * width, *sine = sines + n * width;
        real *to = qkv + n * 3 * heads * width;
        float head[MAX_HEAD_WIDTH];
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t d = 0; d < width; d++) head[d] = load(queries[(n * heads + h) * width + d]);
            rotate(head, cosine, sine, 1, to + h * width, width);
        }
        for (int64_t h = 0; h < heads; h++) {
            const real *key = keys + (n * shared_heads + h / group) * width;
            for (int64_t d = 0; d < width; d++) head[d] = load(key[d]);
            rotate(head, cosine, sine, 1, to + (heads + h) * width, width);
            memcpy(to + (2 * heads + h) * width, values + (n * shared_heads + h / group) * width,
                   sizeof(real) * (size_t)width);
        }
    }
}

/* Gradients of queries, keys and values from that of qkv; those of a shared head are sums over its group. */
void rotate_heads_backward(const real *grad_qkv, const float *cosines, const float *sines, real *grad_queries,
                           real *grad_keys, real *grad_values, int64_t rows, int64_t heads, int64_t shared_heads,
                           int64_t width, int threads) {
    int64_t group = heads / shared_heads;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        const float *cosine = cosines + n * width, *sine = sines + n * width;
        const real *grad = grad_qkv + n * 3 * heads * width;
        float key[MAX_HEAD_WIDTH], value[MAX_HEAD_WIDTH];
        for (int64_t h = 0; h < heads; h++) {
            for (int64_t d = 0; d < width; d++) key[d] = load(grad[h * width + d]);
            rotate(key, cosine, sine, -1, grad_queries + (n * heads + h) * width, width);
        }
        for (int64_t shared = 0; shared < shared_heads; shared++) {
            memset(key, 0, sizeof key);
            memset(value, 0, sizeof value);
            for (int64_t h = shared * group; h < (shared + 1) * group; h++)
                for (int64_t d = 0; d < width; d++) {
                    key[d] += load(grad[(heads + h) * width + d]);
                    value[d] += load(grad[(2 * heads + h) * width + d]);
                }
            int64_t to = (n * shared_heads + shared) * width;
            rotate(key, cosine, sine, -1, grad_keys + to, width);
            for (int64_t d = 0; d < width; d++) grad_values[to + d] = store(value[d]);
        }
    }
}

/* -- SwiGLU ------------------------------------------------------------------------------------------------- */

/* y = gate·s(gate)·up with the sigmoid s. */
void swiglu(const real *gate, const real *up, real *y, int64_t count, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float value = load(gate[i]);
        y[i] = store(value * load(up[i]) / (1.0f + exponential(-value)));
    }
}

void swiglu_backward(const real *gate, const real *up, const real *grad, real *grad_gate, real *grad_up, int64_t count,
                     int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float value = load(gate[i]), outer = load(grad[i]), sigmoid = 1.0f / (1.0f + exponential(-value));
        grad_gate[i] = store(outer * load(up[i]) * sigmoid * (1.0f + value * (1.0f - sigmoid)));
        grad_up[i] = store(outer * value * sigmoid);
    }
}
