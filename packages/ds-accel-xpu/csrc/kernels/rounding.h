// Stochastic rounding; ds_core/ops/rounding.py is the definition. The host makes the two keys of a tensor.
#ifndef DSK_XPU_ROUNDING_H
#define DSK_XPU_ROUNDING_H

#include "common.h"

static inline uint mix32(uint x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

static inline uint random_bits(ulong keys, ulong index) {
  return mix32(mix32((uint)index ^ (uint)keys) + ((uint)(index >> 32) ^ (uint)(keys >> 32)));
}

static inline ushort bf16_by_chance(float x, uint random) {
  const uint bits = as_uint(x);
  const uint special = (bits >> 16) | ((bits & 0x007fffffu) != 0u ? 0x40u : 0u);
  return (ushort)((bits & 0x7f800000u) == 0x7f800000u ? special : (bits + (random & 0xffffu)) >> 16);
}

// Normal results: random bits below the last kept one, then truncation. Subnormal results (steps of 2^-24): the same
// in fixed point, with 13 random bits.
static inline ushort f16_by_chance(float x, uint random) {
  const uint sign = (as_uint(x) >> 16) & 0x8000u;
  const uint magnitude = as_uint(x) & 0x7fffffffu;
  const uint low = random & 0x1fffu;
  if (magnitude >= 0x7f800000u) {
    return (ushort)(sign | (magnitude > 0x7f800000u ? 0x7e00u | ((magnitude >> 13) & 0x3ffu) : 0x7c00u));
  }
  uint result = (magnitude + 0xc8000000u + low) >> 13;
  if (magnitude < 0x38800000u) result = (uint)(as_float(magnitude) * 0x1p24f + (float)low * 0x1p-13f);
  return (ushort)(sign | min(result, 0x7c00u));
}

// float32 into element i: to nearest even, or by chance where `by_chance` and the dtype has fewer bits.
static inline void store_rounded(int dtype, Target base, long i, float x, int by_chance, ulong keys, ulong offset) {
  if (by_chance == 0 || dtype == kF32) {
    store(dtype, base, i, x);
    return;
  }
  const uint random = random_bits(keys, offset + (ulong)i);
  ((global ushort*)base)[i] = dtype == kBF16 ? bf16_by_chance(x, random) : f16_by_chance(x, random);
}

#endif
