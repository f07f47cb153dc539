/* Rows to int8 and back, around an integer matrix product.
 *
 * A rotation multiplies every S columns at distances of D/S by the Hadamard matrix of size S, a power of two, divided
 * by √S. The S columns of the result are neighbours.
 *
 * Letters: N rows, D width, R rank of an adapter.
 */
#include "kernels.h"

#define MAX_WIDTH 16384 /* a row of fp32 lies on the stack */
#define TILE_ROWS 4     /* of `rescale`: each factor of an adapter that is read serves them all */

/* Rotate a row, or undo its rotation, times √S. A stage of a rotation combines the halves of a row into pairs of
 * neighbours, so that all loops are long. */
static inline __attribute__((always_inline)) void transform(float *row, int64_t width, int64_t size, int undo) {
    float spare[MAX_WIDTH], *from = row, *to = spare;
    for (int64_t half = width / 2; size > 1; size /= 2) {
        for (int64_t d = 0; d < half; d++) {
            float one = from[undo ? 2 * d : d], other = from[undo ? 2 * d + 1 : half + d];
            to[undo ? d : 2 * d] = one + other;
            to[undo ? half + d : 2 * d + 1] = one - other;
        }
        float *swap = from;
        from = to, to = swap;
    }
    if (from != row) memcpy(row, from, (size_t)width * sizeof *row);
}

static void rotate(float *row, int64_t width, int64_t size) { transform(row, width, size, 0); }

static void unrotate(float *row, int64_t width, int64_t size) { transform(row, width, size, 1); }

/* The bits of |x|; as integers they are in the order of the floats. */
static inline int32_t magnitude(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x7fffffff;
}

/* q (N, D) = round(y / scales), to even, with y = x·columns, rotated if size > 1, and scales (N,) = max |y| of a row / 127.
 * columns (D,) may be NULL. */
void quantize_rows(const real *x, const float *columns, int8_t *q, float *scales, int64_t rows, int64_t width,
                   int64_t size, int threads) {
    float unit = 1.0f / sqrtf((float)size);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        float row[MAX_WIDTH];
        for (int64_t d = 0; d < width; d++) row[d] = load(x[n * width + d]) * unit;
        if (columns)
            for (int64_t d = 0; d < width; d++) row[d] *= columns[d];
        if (size > 1) rotate(row, width, size);
        int32_t largest = 0;
        for (int64_t d = 0; d < width; d++) {
            int32_t bits = magnitude(row[d]);
            largest = bits > largest ? bits : largest;
        }
        float max;
        memcpy(&max, &largest, sizeof max);
        float scale = scales[n] = (max < 1e-30f ? 1e-30f : max) / 127.0f, factor = 1.0f / scale;
        for (int64_t d = 0; d < width; d++) q[n * width + d] = (int8_t)(int32_t)rintf(row[d] * factor);
    }
}

/* Add factors·up to `count` rows (each D wide), of factors (count, R) and up (R, D). */
static inline __attribute__((always_inline)) void add_update(float *rows, const float *factors, const float *up,
                                                             int64_t width, int64_t rank, int count) {
    int64_t r = 0;
    for (; r + 4 <= rank; r += 4, up += 4 * width) /* four at a time: fewer passes over the rows */
        for (int64_t d = 0; d < width; d++)
            for (int k = 0; k < count; k++) {
                const float *own = factors + k * rank + r;
                rows[k * width + d] += own[0] * up[d] + own[1] * up[width + d] + own[2] * up[2 * width + d] +
                                       own[3] * up[3 * width + d];
            }
    for (; r < rank; r++, up += width)
        for (int64_t d = 0; d < width; d++)
            for (int k = 0; k < count; k++) rows[k * width + d] += factors[k * rank + r] * up[d];
}

/* y (N, D) = sums·scales·columns, unrotated if size > 1, + bias + inner·up, of an integer product `sums` (N, D), inner
 * (N, R) and up (R, D). columns and bias may be NULL; R may be 0. */
void rescale(const int32_t *sums, const float *scales, const float *columns, const float *bias, const float *inner,
             const float *up, real *y, int64_t rows, int64_t width, int64_t rank, int64_t size, int threads) {
    float unit = 1.0f / sqrtf((float)size);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t first = 0; first < rows; first += TILE_ROWS) {
        float tile[TILE_ROWS * MAX_WIDTH];
        int count = (int)(rows - first < TILE_ROWS ? rows - first : TILE_ROWS);
        for (int k = 0; k < count; k++) {
            float *row = tile + k * width, scale = scales[first + k] * unit;
            const int32_t *integers = sums + (first + k) * width;
            for (int64_t d = 0; d < width; d++) row[d] = (float)integers[d] * scale;
            if (columns)
                for (int64_t d = 0; d < width; d++) row[d] *= columns[d];
            if (size > 1) unrotate(row, width, size);
            if (bias)
                for (int64_t d = 0; d < width; d++) row[d] += bias[d];
        }
        if (count == TILE_ROWS) {
            add_update(tile, inner + first * rank, up, width, rank, TILE_ROWS);
        } else {
            for (int k = 0; k < count; k++)
                add_update(tile + k * width, inner + (first + k) * rank, up, width, rank, 1);
        }
        for (int64_t d = 0; d < count * width; d++) y[first * width + d] = store(tile[d]);
    }
}
