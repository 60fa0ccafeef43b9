// Number formats of at most 8 bits: one float32 to a code and back. ds_core/ops/_formats.py says what codes mean.
#ifndef DSK_XPU_FORMATS_H
#define DSK_XPU_FORMATS_H

#include "rounding.h"

// A magnitude rounded to a whole number: to nearest even, or up with a probability equal to the fraction.
static inline float whole(float magnitude, bool by_chance, uint random) {
  if (!by_chance) return rint(magnitude);
  const float below = floor(magnitude);
  return below + ((float)(random >> 8) * 0x1p-24f < magnitude - below ? 1.0f : 0.0f);
}

template <int kBitsOf>
struct IntegerFormat {
  enum { kBits = kBitsOf, kIsInteger = 1, kHalf = 1 << (kBitsOf - 1), kOffset = kBitsOf == 8 ? 0 : kHalf };
  enum { kZeroCode = kOffset, kGreatestExponent = 0 };
  static float largest() { return (float)(kHalf - 1); }

  static uint encode(float ratio, int lowest, int zero, bool by_chance, uint random) {
    const int magnitude = (int)whole(fabs(ratio), by_chance, random);
    const int q = ((as_uint(ratio) >> 31) != 0u ? -magnitude : magnitude) + zero;
    return (uint)(clamp(q, lowest, kHalf - 1) + kOffset) & (kBits == 8 ? 0xffu : 0xfu);
  }
  static float decode(uint code, int zero) {
    const int value = kBits == 8 ? (int)(char)code : (int)code - kOffset;
    return (float)(value - zero);
  }
};

// kSpecial: the magnitude code from which on codes are infinity (kInfinity only) or NaN.
template <int kExponentBits, int kMantissaBits, int kBias, int kSpecial, bool kInfinity>
struct FloatFormat {
  enum { kBits = 1 + kExponentBits + kMantissaBits, kIsInteger = 0, kShift = 23 - kMantissaBits, kTop = kSpecial - 1 };
  enum { kZeroCode = 0, kGreatestExponent = (kTop >> kMantissaBits) - kBias };
  static uint largest_bits() { return ((uint)kTop << kShift) + ((uint)(127 - kBias) << 23); }
  static float largest() { return as_float(largest_bits()); }

  static uint encode(float ratio, int, int, bool by_chance, uint random) {
    const uint bits = as_uint(ratio);
    const uint magnitude = min(bits & 0x7fffffffu, largest_bits());
    const float inverse_step = as_float((uint)(126 + kBias + kMantissaBits) << 23);
    const uint subnormal = (uint)whole(as_float(magnitude) * inverse_step, by_chance, random);
    const uint kept = magnitude >> kShift;
    const uint fraction = magnitude << (32 - kShift);  // of the last kept bit, in units of 2^-32
    const uint up =
        by_chance ? ((random >> 8) < (fraction >> 8) ? 1u : 0u) : (fraction > 0x80000000u - (kept & 1u) ? 1u : 0u);
    const uint normal = kept + up - ((uint)(127 - kBias) << kMantissaBits);
    return (magnitude < (uint)(128 - kBias) << 23 ? subnormal : normal) | ((bits >> 31) << (kBits - 1));
  }
  static float decode(uint code, int) {
    const uint magnitude = code & ((1u << (kBits - 1)) - 1u);
    uint result = (magnitude << kShift) + ((uint)(127 - kBias) << 23);
    if (magnitude < (1u << kMantissaBits)) {
      result = as_uint((float)magnitude * as_float((uint)(128 - kBias - kMantissaBits) << 23));
    }
    if (magnitude >= (uint)kSpecial) result = kInfinity && magnitude == (uint)kSpecial ? 0x7f800000u : 0x7fc00000u;
    return as_float(((code >> (kBits - 1)) << 31) | result);
  }
};

typedef IntegerFormat<8> Int8;
typedef IntegerFormat<4> Int4;
typedef FloatFormat<4, 3, 7, 0x7f, false> E4M3;
typedef FloatFormat<5, 2, 15, 0x7c, true> E5M2;
typedef FloatFormat<3, 2, 3, 32, false> E3M2;
typedef FloatFormat<2, 3, 1, 32, false> E2M3;
typedef FloatFormat<2, 1, 1, 8, false> E2M1;

// enum ds_scaling of ds_kernel/quantize.h
enum { kSymmetric = 1, kAsymmetric = 2, kPowerOfTwo = 3 };

static inline float e8m0_to_float(uint code) {
  if (code == 255u) return as_float(0x7fc00000u);
  return as_float(code == 0u ? 0x00400000u : code << 23);
}

#define DSK_FOR_FORMAT(format, call) \
  switch (format) {                  \
    case 1:                          \
      call(Int8);                    \
      break;                         \
    case 2:                          \
      call(Int4);                    \
      break;                         \
    case 3:                          \
      call(E4M3);                    \
      break;                         \
    case 4:                          \
      call(E5M2);                    \
      break;                         \
    case 5:                          \
      call(E3M2);                    \
      break;                         \
    case 6:                          \
      call(E2M3);                    \
      break;                         \
    default:                         \
      call(E2M1);                    \
  }

#endif
