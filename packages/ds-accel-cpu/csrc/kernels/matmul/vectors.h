// Vectors of the width of the level for the matrix kernels: float32 and int32 lanes, one lane an output.
//
// Note [Outputs in lanes]
// A lane adds up one output over the inputs in order, so the width of a vector changes no result, and neither do the
// rows that are computed with it. fma rounds once on every level; what is not written fma is rounded twice everywhere.
#pragma once

#include "convert.h"
#include "fused.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

// GCC 12 takes the undefined operand of its own AVX-512 intrinsics for a use before initialization.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

namespace dsk::matmul {

using dsk::fma;

#if defined(__AVX512F__) && defined(__AVX512BW__)

constexpr int kLanes = 16;
constexpr int kVectors = 4;  // of a register tile
using Floats = __m512;
using Ints = __m512i;

DSK_INLINE Floats load_floats(const float* p) { return _mm512_loadu_ps(p); }
DSK_INLINE void store_floats(float* p, Floats a) { _mm512_storeu_ps(p, a); }
DSK_INLINE Floats all_floats(float x) { return _mm512_set1_ps(x); }
DSK_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
DSK_INLINE Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
DSK_INLINE Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
DSK_INLINE Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
DSK_INLINE Ints load_ints(const void* p) { return _mm512_loadu_si512(p); }
DSK_INLINE void store_ints(void* p, Ints a) { _mm512_storeu_si512(p, a); }
DSK_INLINE Ints all_ints(int32_t x) { return _mm512_set1_epi32(x); }
DSK_INLINE Ints add(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
DSK_INLINE Ints subtract(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
DSK_INLINE Ints multiply(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
DSK_INLINE Ints both(Ints a, Ints b) { return _mm512_and_si512(a, b); }
DSK_INLINE Ints shift_right(Ints a, int n) { return _mm512_srli_epi32(a, static_cast<unsigned>(n)); }
DSK_INLINE Ints widen_bytes(const int8_t* p) {
  return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
DSK_INLINE Floats to_floats(Ints a) { return _mm512_cvtepi32_ps(a); }
DSK_INLINE Floats masked_bits(Ints a, Ints mask, Ints more) {
  return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(a, mask, more, 0xEA));  // (a & mask) | more
}
// The upper halves of the bits of both, those of `a` below those of `b`.
DSK_INLINE Ints high_halves(Floats a, Floats b) {
  const Ints low = _mm512_srli_epi32(_mm512_castps_si512(a), 16);
  return _mm512_ternarylogic_epi32(_mm512_castps_si512(b), all_ints(-65536), low, 0xEA);
}
DSK_INLINE Ints pair_products(Ints a, Ints b) { return _mm512_madd_epi16(a, b); }

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int kLanes = 8;
constexpr int kVectors = 2;
using Floats = __m256;
using Ints = __m256i;

DSK_INLINE Floats load_floats(const float* p) { return _mm256_loadu_ps(p); }
DSK_INLINE void store_floats(float* p, Floats a) { _mm256_storeu_ps(p, a); }
DSK_INLINE Floats all_floats(float x) { return _mm256_set1_ps(x); }
DSK_INLINE Floats fma(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
DSK_INLINE Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
DSK_INLINE Floats subtract(Floats a, Floats b) { return _mm256_sub_ps(a, b); }
DSK_INLINE Floats multiply(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
DSK_INLINE Ints load_ints(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
DSK_INLINE void store_ints(void* p, Ints a) { _mm256_storeu_si256(static_cast<__m256i*>(p), a); }
DSK_INLINE Ints all_ints(int32_t x) { return _mm256_set1_epi32(x); }
DSK_INLINE Ints add(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
DSK_INLINE Ints subtract(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
DSK_INLINE Ints multiply(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
DSK_INLINE Ints both(Ints a, Ints b) { return _mm256_and_si256(a, b); }
DSK_INLINE Ints shift_right(Ints a, int n) { return _mm256_srli_epi32(a, n); }
DSK_INLINE Ints widen_bytes(const int8_t* p) {
  return _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
}
DSK_INLINE Floats to_floats(Ints a) { return _mm256_cvtepi32_ps(a); }
DSK_INLINE Floats masked_bits(Ints a, Ints mask, Ints more) {
  return _mm256_castsi256_ps(_mm256_or_si256(_mm256_and_si256(a, mask), more));
}
DSK_INLINE Ints high_halves(Floats a, Floats b) {
  return _mm256_blend_epi16(_mm256_srli_epi32(_mm256_castps_si256(a), 16), _mm256_castps_si256(b), 0xAA);
}
DSK_INLINE Ints pair_products(Ints a, Ints b) { return _mm256_madd_epi16(a, b); }

#else

constexpr int kLanes = 4;
constexpr int kVectors = 2;
struct Floats {
  float lane[kLanes];
};
struct Ints {
  int32_t lane[kLanes];
};

template <typename Vector, typename Value>
DSK_INLINE Vector each_lane(const Value& value) {
  Vector result;
  for (int i = 0; i < kLanes; ++i) result.lane[i] = value(i);
  return result;
}
template <typename Value>
DSK_INLINE Floats each_float(const Value& value) {
  return each_lane<Floats>(value);
}
// Integers wrap around, as instructions do.
template <typename Value>
DSK_INLINE Ints each_int(const Value& value) {
  return each_lane<Ints>([&](int i) { return static_cast<int32_t>(value(i)); });
}

DSK_INLINE Floats load_floats(const float* p) {
  return each_float([p](int i) { return p[i]; });
}
DSK_INLINE void store_floats(float* p, Floats a) { std::memcpy(p, a.lane, sizeof(a.lane)); }
DSK_INLINE Floats all_floats(float x) {
  return each_float([x](int) { return x; });
}
DSK_INLINE Floats fma(Floats a, Floats b, Floats c) {
  return each_float([&](int i) { return fma(a.lane[i], b.lane[i], c.lane[i]); });
}
DSK_INLINE Floats add(Floats a, Floats b) {
  return each_float([&](int i) { return a.lane[i] + b.lane[i]; });
}
DSK_INLINE Floats subtract(Floats a, Floats b) {
  return each_float([&](int i) { return a.lane[i] - b.lane[i]; });
}
DSK_INLINE Floats multiply(Floats a, Floats b) {
  return each_float([&](int i) { return a.lane[i] * b.lane[i]; });
}
DSK_INLINE Ints load_ints(const void* p) {
  Ints a;
  std::memcpy(a.lane, p, sizeof(a.lane));
  return a;
}
DSK_INLINE void store_ints(void* p, Ints a) { std::memcpy(p, a.lane, sizeof(a.lane)); }
DSK_INLINE Ints all_ints(int32_t x) {
  return each_int([x](int) { return x; });
}
DSK_INLINE Ints add(Ints a, Ints b) {
  return each_int([&](int i) { return static_cast<uint32_t>(a.lane[i]) + static_cast<uint32_t>(b.lane[i]); });
}
DSK_INLINE Ints subtract(Ints a, Ints b) {
  return each_int([&](int i) { return static_cast<uint32_t>(a.lane[i]) - static_cast<uint32_t>(b.lane[i]); });
}
DSK_INLINE Ints multiply(Ints a, Ints b) {
  return each_int([&](int i) { return static_cast<uint32_t>(a.lane[i]) * static_cast<uint32_t>(b.lane[i]); });
}
DSK_INLINE Ints both(Ints a, Ints b) {
  return each_int([&](int i) { return a.lane[i] & b.lane[i]; });
}
DSK_INLINE Ints shift_right(Ints a, int n) {
  return each_int([&](int i) { return static_cast<uint32_t>(a.lane[i]) >> n; });
}
DSK_INLINE Ints widen_bytes(const int8_t* p) {
  return each_int([p](int i) { return p[i]; });
}
DSK_INLINE Floats to_floats(Ints a) {
  return each_float([&](int i) { return static_cast<float>(a.lane[i]); });
}
DSK_INLINE Floats masked_bits(Ints a, Ints mask, Ints more) {
  return each_float([&](int i) { return float_of(static_cast<uint32_t>((a.lane[i] & mask.lane[i]) | more.lane[i])); });
}
DSK_INLINE Ints high_halves(Floats a, Floats b) {
  return each_int([&](int i) { return (bits_of(a.lane[i]) >> 16) | (bits_of(b.lane[i]) & 0xffff0000u); });
}
DSK_INLINE Ints pair_products(Ints a, Ints b) {
#if defined(__SSE2__)
  const __m128i products = _mm_madd_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a.lane)),
                                          _mm_loadu_si128(reinterpret_cast<const __m128i*>(b.lane)));
  Ints result;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(result.lane), products);
  return result;
#else
  return each_int([&](int i) {
    const int32_t low = static_cast<int16_t>(a.lane[i]) * static_cast<int16_t>(b.lane[i]);
    return low + (a.lane[i] >> 16) * (b.lane[i] >> 16);
  });
#endif
}

#endif

// The code of kBits bits that begins at bit kPlace of each lane, minus half of its range. The code becomes the low bits
// of a large float's mantissa, from which the rest is subtracted: exact, and without a conversion.
template <int kBits, int kPlace>
DSK_INLINE Floats code_values(Ints a) {
#if defined(__AVX512F__)
  if constexpr (kBits == 4) {  // a permutation reads the low four bits of a lane
    const Floats table =
        _mm512_setr_ps(-8.f, -7.f, -6.f, -5.f, -4.f, -3.f, -2.f, -1.f, 0.f, 1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f);
    return _mm512_permutexvar_ps(kPlace == 0 ? a : shift_right(a, kPlace), table);
  }
#endif
  static_assert(kPlace + kBits <= 23, "the code must lie in the mantissa");
  constexpr float kRest = static_cast<float>((1 << (23 - kPlace)) + (1 << (kBits - 1)));
  const Ints mask = all_ints(((1 << kBits) - 1) << kPlace);
  return subtract(masked_bits(a, mask, all_ints((150 - kPlace) << 23)), all_floats(kRest));
}

constexpr int kTile = kLanes * kVectors;  // outputs of a register tile

}  // namespace dsk::matmul
