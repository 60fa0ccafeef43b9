// Device functions of CUDA that kernels use: atomics, bits, rounding, and min and max of every type.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulation/language.h"

namespace dsk_emulation {

// old -> change(old), as one step, on words of 4 or 8 bytes.
template <typename T, typename Change>
T exchange(T* address, const Change& change) {
  using Word = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static_assert(sizeof(T) == sizeof(Word), "atomics are on 4 or 8 bytes");
  Word* const word = reinterpret_cast<Word*>(address);
  Word before = __atomic_load_n(word, __ATOMIC_RELAXED);
  for (;;) {
    T old;
    std::memcpy(&old, &before, sizeof(T));
    const T next = change(old);
    Word after;
    std::memcpy(&after, &next, sizeof(T));
    if (__atomic_compare_exchange_n(word, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return old;
  }
}

template <typename To, typename From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace dsk_emulation

#define DSK_ATOMIC(name, type, expression)                                                 \
  inline type name(type* address, type value) {                                            \
    return dsk_emulation::exchange(address, [=](type old) -> type { return expression; }); \
  }
#define DSK_ATOMIC_INTEGERS(type)                                                                     \
  DSK_ATOMIC(atomicAdd, type, old + value)                                                            \
  DSK_ATOMIC(atomicMin, type, value < old ? value : old)                                              \
  DSK_ATOMIC(atomicMax, type, value > old ? value : old)                                              \
  DSK_ATOMIC(atomicAnd, type, old& value)                                                             \
  DSK_ATOMIC(atomicOr, type, old | value)                                                             \
  DSK_ATOMIC(atomicXor, type, old ^ value)                                                            \
  DSK_ATOMIC(atomicExch, type, (static_cast<void>(old), value))                                       \
  inline type atomicCAS(type* address, type expected, type value) {                                   \
    return dsk_emulation::exchange(address, [=](type old) { return old == expected ? value : old; }); \
  }
DSK_ATOMIC_INTEGERS(int)
DSK_ATOMIC_INTEGERS(unsigned int)
DSK_ATOMIC_INTEGERS(unsigned long long)
DSK_ATOMIC(atomicSub, int, old - value)
DSK_ATOMIC(atomicSub, unsigned int, old - value)
DSK_ATOMIC(atomicMin, long long, value < old ? value : old)
DSK_ATOMIC(atomicMax, long long, value > old ? value : old)
DSK_ATOMIC(atomicAdd, float, old + value)
DSK_ATOMIC(atomicAdd, double, old + value)
DSK_ATOMIC(atomicExch, float, (static_cast<void>(old), value))
#undef DSK_ATOMIC_INTEGERS
#undef DSK_ATOMIC

inline void __threadfence() {}
inline void __threadfence_block() {}

#define DSK_MIN_MAX(type)                                   \
  inline type min(type a, type b) { return b < a ? b : a; } \
  inline type max(type a, type b) { return a < b ? b : a; }
DSK_MIN_MAX(int)
DSK_MIN_MAX(unsigned int)
DSK_MIN_MAX(long)
DSK_MIN_MAX(unsigned long)
DSK_MIN_MAX(long long)
DSK_MIN_MAX(unsigned long long)
#undef DSK_MIN_MAX
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned int x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned int __umulhi(unsigned int a, unsigned int b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline unsigned int __byte_perm(unsigned int x, unsigned int y, unsigned int selector) {
  const uint64_t both = uint64_t{y} << 32 | x;
  unsigned int result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned which = selector >> (4 * i) & 15;
    unsigned byte = static_cast<unsigned>(both >> (8 * (which & 7))) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;
    result |= byte << (8 * i);
  }
  return result;
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(static_cast<unsigned>(a) >> (8 * i)) *
           static_cast<int8_t>(static_cast<unsigned>(b) >> (8 * i));
  }
  return sum;
}

inline int __float_as_int(float x) { return dsk_emulation::same_bits<int>(x); }
inline unsigned int __float_as_uint(float x) { return dsk_emulation::same_bits<unsigned int>(x); }
inline float __int_as_float(int x) { return dsk_emulation::same_bits<float>(x); }
inline float __uint_as_float(unsigned int x) { return dsk_emulation::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return dsk_emulation::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return dsk_emulation::same_bits<double>(x); }

inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return __builtin_sqrtf(a); }
inline double __fma_rn(double a, double b, double c) { return __builtin_fma(a, b, c); }
// As a device converts: NaN to 0, and what does not fit to the nearest that does.
inline int __float2int_rz(float x) {
  if (x != x) return 0;
  return x >= 0x1p31f ? INT32_MAX : x < -0x1p31f ? INT32_MIN : static_cast<int>(x);
}
inline int __float2int_rn(float x) { return __float2int_rz(__builtin_rintf(x)); }
inline int __float2int_rd(float x) { return __float2int_rz(__builtin_floorf(x)); }
inline int __float2int_ru(float x) { return __float2int_rz(__builtin_ceilf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
inline float rsqrtf(float x) { return 1.0f / __builtin_sqrtf(x); }
