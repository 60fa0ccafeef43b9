// Number formats of at most 8 bits: float32 to codes and back. ds_core/ops/_formats.py says what codes mean.
#pragma once

#include "gpu/gpu.h"
#include "vectors.h"

namespace dsk::quant {

// A magnitude rounded to a whole number: to nearest even, or up with a probability equal to the fraction.
template <bool kStochastic>
DSK_DEVICE float whole(float magnitude, uint32_t random) {
  if (!kStochastic) return rintf(magnitude);
  const float below = floorf(magnitude);
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
  static constexpr uint32_t kZeroCode = kOffset;

  template <bool kStochastic>
  static DSK_DEVICE uint32_t encode(float ratio, int32_t lowest, int32_t zero, uint32_t random) {
    const int32_t magnitude = static_cast<int32_t>(whole<kStochastic>(fabsf(ratio), random));
    int32_t q = ((bits_of(ratio) >> 31) != 0 ? -magnitude : magnitude) + zero;
    q = q < lowest ? lowest : q;
    q = q > kHalf - 1 ? kHalf - 1 : q;
    return static_cast<uint32_t>(q + kOffset) & ((1u << kBits) - 1u);
  }

  static DSK_DEVICE float decode(uint32_t code, int32_t zero) {
    const int32_t value = kBits == 8 ? static_cast<int8_t>(code) : static_cast<int32_t>(code) - kOffset;
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
  static constexpr uint32_t kInverseStepBits = static_cast<uint32_t>(126 + kBias + kMantissaBits) << 23;  // 1 / step
  static constexpr uint32_t kZeroCode = 0;

  template <bool kStochastic>
  static DSK_DEVICE uint32_t encode(float ratio, int32_t, int32_t, uint32_t random) {
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
    return code | ((bits >> 31) << (kBits - 1));
  }

  static DSK_DEVICE float decode(uint32_t code, int32_t) {
    const uint32_t magnitude = code & ((1u << (kBits - 1)) - 1u);
    const uint32_t sign = (code >> (kBits - 1)) << 31;
    // A float with these exponent and mantissa bits, subnormal ones too, is short by the difference of the biases.
    float value = float_of(magnitude << kShift) * float_of(static_cast<uint32_t>(254 - kBias) << 23);
    if (magnitude >= static_cast<uint32_t>(kSpecial)) {
      value = float_of(kInfinity && magnitude == kSpecial ? 0x7f800000u : 0x7fc00000u);
    }
    return float_of(sign | bits_of(value));
  }
};

using Int8 = IntegerFormat<8>;
using Int4 = IntegerFormat<4>;
using E4M3 = FloatFormat<4, 3, 7, 0x7f, false>;
using E5M2 = FloatFormat<5, 2, 15, 0x7c, true>;
using E3M2 = FloatFormat<3, 2, 3, 32, false>;
using E2M3 = FloatFormat<2, 3, 1, 32, false>;
using E2M1 = FloatFormat<2, 1, 1, 8, false>;

__host__ __device__ constexpr int codes_per_unit(int bits) { return bits == 8 ? 1 : bits == 4 ? 2 : 4; }
__host__ __device__ constexpr int unit_bytes(int bits) { return bits == 6 ? 3 : 1; }

// Note [Eight codes]
// Eight codes of 8, 6 or 4 bits are the low 64, 48 or 32 bits of a number, and as many bytes as a code has bits: units
// of packing follow each other without a gap. So one number packs and unpacks all formats.

// Where the codes from element `first` on begin; `first` begins a unit.
template <int kBits>
DSK_HOST_DEVICE int64_t code_offset(int64_t first) {
  return first / codes_per_unit(kBits) * unit_bytes(kBits);
}

// The bytes of n of eight codes, from 0 to 8.
template <int kBits>
DSK_DEVICE int code_bytes(int64_t n) {
  constexpr int kUnit = codes_per_unit(kBits);
  return n >= kVector ? kBits : static_cast<int>((n + kUnit - 1) / kUnit * unit_bytes(kBits));
}

// The widest piece that eight codes are a whole number of.
template <int kBits>
struct Piece {
  using type = uint64_t;
};
template <>
struct Piece<6> {
  using type = uint16_t;
};
template <>
struct Piece<4> {
  using type = uint32_t;
};

template <int kBits>
DSK_DEVICE void store_codes(uint8_t* q, int64_t n, uint64_t codes) {
  using Part = typename Piece<kBits>::type;
  if (n >= kVector && all_aligned(sizeof(Part), q)) {
#pragma unroll
    for (int i = 0; i < kBits / static_cast<int>(sizeof(Part)); ++i) {
      reinterpret_cast<Part*>(q)[i] = static_cast<Part>(codes >> (8 * sizeof(Part) * i));
    }
    return;
  }
  const int bytes = code_bytes<kBits>(n);
#pragma unroll
  for (int i = 0; i < kBits; ++i) {
    if (i < bytes) q[i] = static_cast<uint8_t>(codes >> (8 * i));
  }
}

template <int kBits>
DSK_DEVICE uint64_t load_codes(const uint8_t* q, int64_t n) {
  using Part = typename Piece<kBits>::type;
  uint64_t codes = 0;
  if (n >= kVector && all_aligned(sizeof(Part), q)) {
#pragma unroll
    for (int i = 0; i < kBits / static_cast<int>(sizeof(Part)); ++i) {
      codes |= static_cast<uint64_t>(reinterpret_cast<const Part*>(q)[i]) << (8 * sizeof(Part) * i);
    }
    return codes;
  }
  const int bytes = code_bytes<kBits>(n);
#pragma unroll
  for (int i = 0; i < kBits; ++i) {
    if (i < bytes) codes |= static_cast<uint64_t>(q[i]) << (8 * i);
  }
  return codes;
}

template <int kBits>
DSK_DEVICE uint32_t code_at(uint64_t codes, int place) {
  return static_cast<uint32_t>(codes >> (kBits * place)) & ((1u << kBits) - 1u);
}

// Calls body with the format of a number; DS_BAD_ARGUMENT if there is none.
template <typename Body>
inline int32_t with_format(int32_t format, const Body& body) {
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
      return DS_BAD_ARGUMENT;
  }
}

}  // namespace dsk::quant
