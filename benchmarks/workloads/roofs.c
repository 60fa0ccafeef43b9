/* What this machine can do at most: bytes a second by kind of traffic, and operations a second by kind of arithmetic.
 * Compiled on the spot for this processor. Every function of traffic returns bytes moved, one of arithmetic operations
 * done; 0 if the processor has no such instruction. */
#include <stdint.h>
#include <stdlib.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

typedef float floats __attribute__((vector_size(64)));

static floats *arrays[3];
static int64_t vectors;
static volatile float sink;

/* Allocates and touches three arrays with the threads that will use them. Returns 0, or 1 without memory. */
int prepare(int64_t bytes) {
  vectors = bytes / 64;
  for (int k = 0; k < 3; ++k) {
    arrays[k] = aligned_alloc(64, (size_t)vectors * 64);
    if (arrays[k] == NULL) return 1;
  }
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < vectors; ++i)
    for (int k = 0; k < 3; ++k) arrays[k][i] = (floats){0} + 1e-6f;
  return 0;
}

/* Bytes are counted as kernels count them: what a store fetches first is not among them. */
int64_t traffic_read(void) {
  float total = 0;
#pragma omp parallel reduction(+ : total)
  {
    floats sums[8] = {{0}};
#pragma omp for schedule(static)
    for (int64_t i = 0; i < vectors / 8; ++i)
      for (int k = 0; k < 8; ++k) sums[k] += arrays[0][8 * i + k];
    for (int k = 0; k < 8; ++k) total += sums[k][0] + sums[k][7];
  }
  sink = total;
  return vectors / 8 * 8 * 64;
}

int64_t traffic_write(void) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < vectors; ++i) arrays[0][i] = (floats){0} + 2e-6f;
  return vectors * 64;
}

int64_t traffic_copy(void) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < vectors; ++i) arrays[1][i] = arrays[0][i];
  return vectors * 128;
}

int64_t traffic_triad(void) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < vectors; ++i) arrays[2][i] = arrays[0][i] + 3.0f * arrays[1][i];
  return vectors * 192;
}

#define ACCUMULATORS 12

int64_t arithmetic_fp32(int64_t rounds) {
  int64_t done = 0;
#pragma omp parallel reduction(+ : done)
  {
    floats sums[ACCUMULATORS], factor = (floats){0} + 0.999f, term = (floats){0} + 1e-3f;
    for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = term + (float)k;
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = sums[k] * factor + term;
    }
    for (int k = 0; k < ACCUMULATORS; ++k) sink = sums[k][0];
    done += rounds * ACCUMULATORS * 16 * 2;
  }
  return done;
}

int64_t arithmetic_bf16(int64_t rounds) {
  int64_t done = 0;
#if defined(__AVX512BF16__)
#pragma omp parallel reduction(+ : done)
  {
    __m512 sums[ACCUMULATORS];
    const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.25f));
    for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = _mm512_set1_ps((float)k);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = _mm512_dpbf16_ps(sums[k], a, a);
    }
    for (int k = 0; k < ACCUMULATORS; ++k) sink = _mm512_cvtss_f32(sums[k]);
    done += rounds * ACCUMULATORS * 32 * 2;
  }
#else
  (void)rounds;
#endif
  return done;
}

int64_t arithmetic_int8(int64_t rounds) {
  int64_t done = 0;
#if defined(__AVX512VNNI__)
#pragma omp parallel reduction(+ : done)
  {
    __m512i sums[ACCUMULATORS];
    const __m512i a = _mm512_set1_epi8(3);
    for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = _mm512_set1_epi32(k);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = _mm512_dpbusd_epi32(sums[k], a, a);
    }
    for (int k = 0; k < ACCUMULATORS; ++k) sink = (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(sums[k]));
    done += rounds * ACCUMULATORS * 64 * 2;
  }
#elif defined(__ARM_FEATURE_DOTPROD)
#pragma omp parallel reduction(+ : done)
  {
    int32x4_t sums[ACCUMULATORS];
    const int8x16_t a = vdupq_n_s8(3);
    for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = vdupq_n_s32(k);
    for (int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
      for (int k = 0; k < ACCUMULATORS; ++k) sums[k] = vdotq_s32(sums[k], a, a);
    }
    for (int k = 0; k < ACCUMULATORS; ++k) sink = (float)vgetq_lane_s32(sums[k], 0);
    done += rounds * ACCUMULATORS * 16 * 2;
  }
#else
  (void)rounds;
#endif
  return done;
}
