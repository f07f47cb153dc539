/* Types and functions that all kernels share.
 *
 * The kernels are plain C for the compiler to vectorise. `colakit/kernels/native.py` compiles them once per tensor
 * dtype: `real` is float, or bf16 with -DBF16. All sums are in fp32. Results do not depend on the number of threads.
 */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#define MAX_HEAD_WIDTH 128 /* of attention and rotary positions */
#define LANES 16           /* floats per step of an inner loop: one AVX-512 register, or two of AVX2 */

/* -- types -------------------------------------------------------------------------------------------------- */

#ifdef BF16
typedef uint16_t real;

static inline float load(real stored) {
    uint32_t bits = (uint32_t)stored << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline real store(float value) { /* round to nearest, ties to even; keeps the NaNs that processors make */
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (real)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
#else
typedef float real;

static inline float load(real stored) { return stored; }

static inline real store(float value) { return value; }
#endif

typedef float lanes __attribute__((vector_size(sizeof(float) * LANES), aligned(sizeof(float)))); /* GCC and clang */

static inline lanes load_lanes(const real *from) {
    lanes values;
    for (int lane = 0; lane < LANES; lane++) values[lane] = load(from[lane]);
    return values;
}

static inline float sum_of(lanes values) {
    float sum = 0;
    for (int lane = 0; lane < LANES; lane++) sum += values[lane];
    return sum;
}

/* -- functions of one number -------------------------------------------------------------------------------- */

/* e^x with a relative error of 5e-7; x is clamped to ±87. Computed as 2^n·e^r with |r| ≤ ln(2)/2, and e^r by its
 * Taylor series. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x > 87.0f ? 87.0f : x; /* keeps NaN */
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.69314718f;
    float series = 1.0f + r * (1.0f + r * (0.5f + r * (1 / 6.0f + r * (1 / 24.0f + r * (1 / 120.0f + r / 720.0f)))));
    uint32_t bits = (uint32_t)((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power * series;
}

/* 32 random bits for an element, a function of the 64-bit seed and the element's index: two rounds of a hash
 * ("lowbias32", C. Wellons, 2018). Seeds must be random: two that differ by k in their low half give the same
 * sequence, shifted by k elements. */
static inline uint32_t mix(uint32_t x) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

static inline uint32_t draw(uint64_t seed, uint32_t element) {
    return mix(mix(element + (uint32_t)seed) ^ (uint32_t)(seed >> 32));
}

/* 1/(1-p) where the element is kept and 0 where it is dropped; `level` is p·2^32. */
static inline float kept(uint64_t seed, uint32_t element, uint32_t level, float scale) {
    return draw(seed, element) >= level ? scale : 0.0f;
}
