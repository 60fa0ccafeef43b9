// float32 to and from bfloat16 and float16, to nearest even or stochastically, with the same bits on every level.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

#if defined(__F16C__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dsk {

DSK_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
DSK_INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// The random bits of one tensor of one call; ds_core/ops/rounding.py has the same in torch integer ops.
struct Rounding {
  bool stochastic = false;
  uint32_t key0 = 0;
  uint32_t key1 = 0;
  uint64_t offset = 0;
};

DSK_INLINE uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

inline Rounding make_rounding(int64_t seed, int64_t offset, uint64_t stream) {
  Rounding rounding;
  if (seed < 0) return rounding;
  uint64_t z = static_cast<uint64_t>(seed) + (stream + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  rounding.stochastic = true;
  rounding.key0 = static_cast<uint32_t>(z);
  rounding.key1 = static_cast<uint32_t>(z >> 32);
  rounding.offset = static_cast<uint64_t>(offset);
  return rounding;
}

DSK_INLINE uint32_t random_bits(uint32_t key0, uint32_t key1, uint64_t index) {
  const uint32_t low = static_cast<uint32_t>(index);
  const uint32_t high = static_cast<uint32_t>(index >> 32);
  return mix32(mix32(low ^ key0) + (high ^ key1));
}

DSK_INLINE uint16_t bf16_of(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

DSK_INLINE uint16_t bf16_of(float x, uint32_t random) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + (random & 0xffffu)) >> 16;
  const uint32_t special = (bits >> 16) | ((bits & 0x007fffffu) != 0 ? 0x40u : 0u);
  return static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? special : rounded);
}

// float16 in integers and exact float operations, for levels without the instruction.
DSK_INLINE uint16_t f16_of(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // 0.5 puts 2^-24 at the last bit
  const uint32_t infinite = 0x7c00u;
  const uint32_t quiet = 0x7e00u | ((magnitude >> 13) & 0x3ffu);
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? infinite : result;
  result = magnitude > 0x7f800000u ? quiet : result;
  return static_cast<uint16_t>(sign | result);
}

DSK_INLINE float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = (magnitude << 13) | 0x7f800000u | (magnitude > 0x7c00u ? 0x00400000u : 0u);
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  uint32_t result = magnitude < 0x0400u ? subnormal : normal;
  result = magnitude >= 0x7c00u ? special : result;
  return float_of(sign | result);
}

// Normal results: random bits below the last kept one, then truncation. Subnormal results (steps of 2^-24): the same
// in fixed point, with 13 random bits.
DSK_INLINE uint16_t f16_of(float x, uint32_t random) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t low = random & 0x1fffu;
  const uint32_t normal = (magnitude + 0xc8000000u + low) >> 13;
  const bool small = magnitude < 0x38800000u;
  const float steps =
      (small ? float_of(magnitude) : 0.0f) * 0x1p24f + static_cast<float>(static_cast<int32_t>(low)) * 0x1p-13f;
  const uint32_t subnormal = static_cast<uint32_t>(static_cast<int32_t>(steps));
  uint32_t result = small ? subnormal : normal;
  result = magnitude < 0x7f800000u && result > 0x7c00u ? 0x7c00u : result;
  const uint32_t special = magnitude > 0x7f800000u ? (0x7e00u | ((magnitude >> 13) & 0x3ffu)) : 0x7c00u;
  result = magnitude >= 0x7f800000u ? special : result;
  return static_cast<uint16_t>(sign | result);
}

inline void load_f16(const uint16_t* __restrict source, float* __restrict out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i))));
  }
#elif defined(__aarch64__)
  for (; i + 4 <= n; i += 4) vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(source + i))));
#endif
  for (; i < n; ++i) out[i] = f16_to_float(source[i]);
}

inline void store_f16(const float* __restrict source, uint16_t* __restrict out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(source + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
#elif defined(__aarch64__)
  for (; i + 4 <= n; i += 4) vst1_u16(out + i, vreinterpret_u16_f16(vcvt_f16_f32(vld1q_f32(source + i))));
#endif
  for (; i < n; ++i) out[i] = f16_of(source[i]);
}

// Note [bfloat16 by instruction]
// The instruction of AVX512-BF16 rounds to nearest even and quiets NaNs as bf16_of does, but takes subnormal numbers
// for zero, whatever the rounding mode and the flags say. So blocks with a zero exponent among them go the other way.
inline void store_bf16(const float* __restrict source, uint16_t* __restrict out, int64_t n) {
  int64_t i = 0;
#if defined(__AVX512BF16__)
  const __m512i exponent = _mm512_set1_epi32(0x7f800000);
  for (; i + 32 <= n; i += 32) {
    const __m512 low = _mm512_loadu_ps(source + i);
    const __m512 high = _mm512_loadu_ps(source + i + 16);
    const __mmask16 small_low = _mm512_testn_epi32_mask(_mm512_castps_si512(low), exponent);
    const __mmask16 small_high = _mm512_testn_epi32_mask(_mm512_castps_si512(high), exponent);
    if (__builtin_expect((small_low | small_high) != 0, 0)) {
      for (int64_t j = i; j < i + 32; ++j) out[j] = bf16_of(source[j]);
      continue;
    }
    const __m512bh both = _mm512_cvtne2ps_pbh(high, low);
    std::memcpy(out + i, &both, sizeof(both));
  }
#endif
  for (; i < n; ++i) out[i] = bf16_of(source[i]);
}

// Elements [0, n) of a tensor as float32.
inline void load_block(int32_t dtype, const void* source, float* __restrict out, int64_t n) {
  if (dtype == DS_F32) {
    std::memcpy(out, source, static_cast<size_t>(n) * 4);
  } else if (dtype == DS_BF16) {
    const uint16_t* __restrict in = static_cast<const uint16_t*>(source);
    for (int64_t i = 0; i < n; ++i) out[i] = float_of(static_cast<uint32_t>(in[i]) << 16);
  } else {
    load_f16(static_cast<const uint16_t*>(source), out, n);
  }
}

// float32 rounded to nearest even into a tensor.
inline void store_block(int32_t dtype, const float* __restrict source, void* out, int64_t n) {
  if (dtype == DS_F32) {
    std::memcpy(out, source, static_cast<size_t>(n) * 4);
  } else if (dtype == DS_BF16) {
    store_bf16(source, static_cast<uint16_t*>(out), n);
  } else {
    store_f16(source, static_cast<uint16_t*>(out), n);
  }
}

// The random bits of elements [first, first + n).
inline void random_block(const Rounding& rounding, int64_t first, int64_t n, uint32_t* __restrict random) {
  const uint64_t start = rounding.offset + static_cast<uint64_t>(first);
  const uint32_t key0 = rounding.key0;
  const uint32_t key1 = rounding.key1;
  if ((start >> 32) == ((start + static_cast<uint64_t>(n)) >> 32)) {
    const uint32_t low = static_cast<uint32_t>(start);
    const uint32_t high = static_cast<uint32_t>(start >> 32) ^ key1;
    for (int64_t i = 0; i < n; ++i) random[i] = mix32(mix32((low + static_cast<uint32_t>(i)) ^ key0) + high);
  } else {
    for (int64_t i = 0; i < n; ++i) random[i] = random_bits(key0, key1, start + static_cast<uint64_t>(i));
  }
}

// float32 rounded stochastically into a tensor; `first` is the index of source[0] in the tensor.
inline void store_block(int32_t dtype, const float* __restrict source, void* out, int64_t n, const Rounding& rounding,
                        int64_t first) {
  if (dtype == DS_F32 || !rounding.stochastic) {
    store_block(dtype, source, out, n);
    return;
  }
  uint32_t random[kBlock];
  random_block(rounding, first, n, random);
  uint16_t* __restrict to = static_cast<uint16_t*>(out);
  if (dtype == DS_BF16) {
    for (int64_t i = 0; i < n; ++i) to[i] = bf16_of(source[i], random[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = f16_of(source[i], random[i]);
  }
}

// Copies a block that nobody reads soon past the caches, so that its lines are not fetched first.
inline void stream_out(const void* source, void* out, int64_t bytes) {
#if defined(__SSE2__)
  const char* from = static_cast<const char*>(source);
  char* to = static_cast<char*>(out);
  const int64_t head = min64(bytes, static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(to) & 63)) & 63));
  std::memcpy(to, from, static_cast<size_t>(head));
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    for (int64_t part = 0; part < 64; part += 16) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i + part), value);
    }
  }
  std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
#else
  std::memcpy(out, source, static_cast<size_t>(bytes));
#endif
}

// Makes streamed stores visible before the task is reported done.
inline void stream_fence() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace dsk
