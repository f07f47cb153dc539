/* Rows to int8 and back, around an integer matrix product.
 *
 * A rotation multiplies every S columns at distances of D/S by the Hadamard matrix of size S, a power of two, divided
 * by √S.
 *
 * Letters: N rows, D width, R rank of an adapter.
 */
#include "kernels.h"

#define MAX_WIDTH 16384 /* a row of fp32 lies on the stack */

static void rotate(float *row, int64_t width, int64_t size) {
    float factor = 1.0f / sqrtf((float)size);
    for (int64_t half = width / size; half < width; half *= 2)
        for (int64_t first = 0; first < width; first += 2 * half)
            for (int64_t d = first; d < first + half; d++) {
                float one = row[d], other = row[d + half];
                row[d] = one + other;
                row[d + half] = one - other;
            }
    for (int64_t d = 0; d < width; d++) row[d] *= factor;
}

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
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        float row[MAX_WIDTH];
        for (int64_t d = 0; d < width; d++) row[d] = load(x[n * width + d]);
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

/* y (N, D) = sums·scales·columns, rotated if size > 1, + bias + inner·up, of an integer product `sums` (N, D), inner
 * (N, R) and up (R, D). columns and bias may be NULL; R may be 0. */
void rescale(const int32_t *sums, const float *scales, const float *columns, const float *bias, const float *inner,
             const float *up, real *y, int64_t rows, int64_t width, int64_t rank, int64_t size, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t n = 0; n < rows; n++) {
        float row[MAX_WIDTH];
        for (int64_t d = 0; d < width; d++) row[d] = (float)sums[n * width + d] * scales[n];
        if (columns)
            for (int64_t d = 0; d < width; d++) row[d] *= columns[d];
        if (size > 1) rotate(row, width, size);
        if (bias)
            for (int64_t d = 0; d < width; d++) row[d] += bias[d];
        const float *factors = inner + n * rank, *other = up;
        int64_t r = 0;
        for (; r + 4 <= rank; r += 4, other += 4 * width) /* four at a time: fewer passes over the row */
            for (int64_t d = 0; d < width; d++)
                row[d] += factors[r] * other[d] + factors[r + 1] * other[width + d] +
                          factors[r + 2] * other[2 * width + d] + factors[r + 3] * other[3 * width + d];
        for (; r < rank; r++, other += width)
            for (int64_t d = 0; d < width; d++) row[d] += factors[r] * other[d];
        for (int64_t d = 0; d < width; d++) y[n * width + d] = store(row[d]);
    }
}
