// Number formats of at most 8 bits: float32 to codes and back, for blocks. ds_core/ops/_formats.py says what codes
// mean.
#pragma once

#include "convert.h"

namespace dsk::quant {

// A magnitude rounded to a whole number: to nearest even, or up with a probability equal to the fraction.
template <bool kStochastic>
DSK_INLINE float whole(float magnitude, uint32_t random) {
  if (!kStochastic) return __builtin_nearbyintf(magnitude);
  const float below = __builtin_floorf(magnitude);
  const float draw = static_cast<float>(static_cast<int32_t>(random >> 8)) * 0x1p-24f;
  return below + (draw < magnitude - below ? 1.0f : 0.0f);
}

template <int kBitsOf>
struct IntegerFormat {
  static constexpr int kBits = kBitsOf;
  static constexpr bool kIsInteger = true;
  static constexpr int32_t kHalf = 1 << (kBits - 1);
  static constexpr int32_t kOffset = kBits == 8 ? 0 : kHalf;  // of a code from its value
  static constexpr float kLargest = static_cast<float>(kHalf - 1);
  static constexpr uint8_t kZeroCode = kOffset;

  template <bool kStochastic>
  static DSK_INLINE uint8_t encode(float ratio, int32_t lowest, int32_t zero, uint32_t random) {
    const float rounded = whole<kStochastic>(float_of(bits_of(ratio) & 0x7fffffffu), random);
    const int32_t magnitude = static_cast<int32_t>(rounded);
    int32_t q = ((bits_of(ratio) >> 31) != 0 ? -magnitude : magnitude) + zero;
    q = q < lowest ? lowest : q;
    q = q > kHalf - 1 ? kHalf - 1 : q;
    return static_cast<uint8_t>(q + kOffset);
  }

  static DSK_INLINE float decode(uint8_t code, int32_t zero) {
    const int32_t value = kBits == 8 ? static_cast<int32_t>(static_cast<int8_t>(code)) : code - kOffset;
    return static_cast<float>(value - zero);
  }
};

// kSpecial: the magnitude code from which on codes are infinity (kInfinity only) or NaN.
template <int kExponentBits, int kMantissaBits, int kBias, int kSpecial, bool kInfinity>
struct FloatFormat {
  static constexpr int kBits = 1 + kExponentBits + kMantissaBits;
  static constexpr bool kIsInteger = false;
  static constexpr int kShift = 23 - kMantissaBits;
  static constexpr int kTop = kSpecial - 1;  // code of the largest finite magnitude
  static constexpr int kGreatestExponent = (kTop >> kMantissaBits) - kBias;
  static constexpr uint32_t kLargestBits =
      (static_cast<uint32_t>(kTop) << kShift) + (static_cast<uint32_t>(127 - kBias) << 23);
  static constexpr uint32_t kSmallestNormalBits = static_cast<uint32_t>(128 - kBias) << 23;
  static constexpr uint32_t kStepBits = static_cast<uint32_t>(128 - kBias - kMantissaBits) << 23;  // of subnormals
  static constexpr uint32_t kInverseStepBits = static_cast<uint32_t>(126 + kBias + kMantissaBits) << 23;  // 1 / step
  static constexpr uint8_t kZeroCode = 0;

  template <bool kStochastic>
  static DSK_INLINE uint8_t encode(float ratio, int32_t, int32_t, uint32_t random) {
    const uint32_t bits = bits_of(ratio);
    uint32_t magnitude = bits & 0x7fffffffu;
    magnitude = magnitude > kLargestBits ? kLargestBits : magnitude;
    const float steps = whole<kStochastic>(float_of(magnitude) * float_of(kInverseStepBits), random);
    const uint32_t subnormal = static_cast<uint32_t>(static_cast<int32_t>(steps));
    const uint32_t kept = magnitude >> kShift;
    const uint32_t fraction = magnitude << (32 - kShift);  // of the last kept bit, in units of 2^-32
    const uint32_t up =
        kStochastic ? ((random >> 8) < (fraction >> 8) ? 1u : 0u) : (fraction > 0x80000000u - (kept & 1u) ? 1u : 0u);
    const uint32_t normal = kept + up - (static_cast<uint32_t>(127 - kBias) << kMantissaBits);
    const uint32_t code = magnitude < kSmallestNormalBits ? subnormal : normal;
    return static_cast<uint8_t>(code | ((bits >> 31) << (kBits - 1)));
  }

  static DSK_INLINE float decode(uint8_t code, int32_t) {
    const uint32_t magnitude = code & ((1u << (kBits - 1)) - 1u);
    const uint32_t sign = static_cast<uint32_t>(code >> (kBits - 1)) << 31;
    const uint32_t normal = (magnitude << kShift) + (static_cast<uint32_t>(127 - kBias) << 23);
    const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * float_of(kStepBits));
    const uint32_t special = kInfinity && magnitude == kSpecial ? 0x7f800000u : 0x7fc00000u;
    uint32_t result = magnitude < (1u << kMantissaBits) ? subnormal : normal;
    result = magnitude >= static_cast<uint32_t>(kSpecial) ? special : result;
    return float_of(sign | result);
  }
};

using Int8 = IntegerFormat<8>;
using Int4 = IntegerFormat<4>;
using E4M3 = FloatFormat<4, 3, 7, 0x7f, false>;
using E5M2 = FloatFormat<5, 2, 15, 0x7c, true>;
using E3M2 = FloatFormat<3, 2, 3, 32, false>;
using E2M3 = FloatFormat<2, 3, 1, 32, false>;
using E2M1 = FloatFormat<2, 1, 1, 8, false>;

constexpr int codes_per_unit(int bits) { return bits == 8 ? 1 : bits == 4 ? 2 : 4; }
constexpr int unit_bytes(int bits) { return bits == 6 ? 3 : 1; }

// The bytes of n codes; what is left of the last unit is 0. `codes` has room for a whole unit.
template <int kBits>
inline void pack_codes(uint8_t* __restrict codes, int64_t n, uint8_t* __restrict out) {
  constexpr int kUnit = codes_per_unit(kBits);
  const int64_t units = ceil_div(n, kUnit);
  for (int64_t i = n; i < units * kUnit; ++i) codes[i] = 0;
  if (kBits == 8) {
    std::memcpy(out, codes, static_cast<size_t>(n));
  } else if (kBits == 4) {
    for (int64_t i = 0; i < units; ++i) {
      uint16_t pair;
      std::memcpy(&pair, codes + 2 * i, 2);
      out[i] = static_cast<uint8_t>(pair | (pair >> 4));
    }
  } else {
    for (int64_t i = 0; i < units; ++i) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * i, 4);
      four = (four & 0x3fu) | ((four >> 2) & 0xfc0u) | ((four >> 4) & 0x3f000u) | ((four >> 6) & 0xfc0000u);
      out[3 * i] = static_cast<uint8_t>(four);
      out[3 * i + 1] = static_cast<uint8_t>(four >> 8);
      out[3 * i + 2] = static_cast<uint8_t>(four >> 16);
    }
  }
}

// The codes of whole units; `codes` has room for the last one.
template <int kBits>
inline void unpack_codes(const uint8_t* __restrict packed, int64_t n, uint8_t* __restrict codes) {
  const int64_t units = ceil_div(n, codes_per_unit(kBits));
  if (kBits == 8) {
    std::memcpy(codes, packed, static_cast<size_t>(n));
  } else if (kBits == 4) {
    for (int64_t i = 0; i < units; ++i) {
      const uint16_t byte = packed[i];
      const uint16_t pair = static_cast<uint16_t>((byte & 0xfu) | ((byte & 0xf0u) << 4));
      std::memcpy(codes + 2 * i, &pair, 2);
    }
  } else {
    for (int64_t i = 0; i < units; ++i) {
      const uint32_t word = packed[3 * i] | (static_cast<uint32_t>(packed[3 * i + 1]) << 8) |
                            (static_cast<uint32_t>(packed[3 * i + 2]) << 16);
      const uint32_t four =
          (word & 0x3fu) | ((word & 0xfc0u) << 2) | ((word & 0x3f000u) << 4) | ((word & 0xfc0000u) << 6);
      std::memcpy(codes + 4 * i, &four, 4);
    }
  }
}

// Calls body with the format of a number; false if there is none.
template <typename Body>
inline bool with_format(int32_t format, const Body& body) {
  switch (format) {
    case DS_FORMAT_INT8:
      return body(Int8());
    case DS_FORMAT_INT4:
      return body(Int4());
    case DS_FORMAT_E4M3FN:
      return body(E4M3());
    case DS_FORMAT_E5M2:
      return body(E5M2());
    case DS_FORMAT_E3M2:
      return body(E3M2());
    case DS_FORMAT_E2M3:
      return body(E2M3());
    case DS_FORMAT_E2M1:
      return body(E2M1());
    default:
      return false;
  }
}

}  // namespace dsk::quant
