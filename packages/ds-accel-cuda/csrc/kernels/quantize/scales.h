// The range of a group, and the scale that follows from it.
#pragma once

#include "quantize/formats.h"
#include "team.h"

namespace dsk::quant {

struct Range {
  uint32_t magnitude = 0;  // bits of the largest; as integers NaN is above infinity, and that above every number
  int32_t low = 0;         // keys of the least and the greatest, and of zero
  int32_t high = 0;
};

// An integer that is ordered as the float is, and 0 for zero.
DSK_DEVICE int32_t order_key(uint32_t bits) {
  return static_cast<int32_t>(bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) & 0x7fffffffu));
}
DSK_DEVICE float of_order_key(int32_t key) {
  return float_of(static_cast<uint32_t>(key) ^ (static_cast<uint32_t>(key >> 31) & 0x7fffffffu));
}

struct Larger {
  template <typename T>
  DSK_DEVICE T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};
struct Smaller {
  template <typename T>
  DSK_DEVICE T operator()(T a, T b) const {
    return a < b ? a : b;
  }
};

// Widens by eight values; zeros change nothing.
DSK_DEVICE void widen(Range& range, const float (&x)[kVector], bool is_signed) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    range.magnitude = Larger()(range.magnitude, bits_of(x[i]) & 0x7fffffffu);
    if (is_signed) {
      const int32_t key = order_key(bits_of(x[i]));
      range.low = Smaller()(range.low, key);
      range.high = Larger()(range.high, key);
    }
  }
}

// The range of what all threads of a team have seen.
DSK_DEVICE Range over_team(const Team& team, Range range, bool is_signed) {
  range.magnitude = team.all(range.magnitude, Larger(), 0u);
  if (is_signed) {
    range.low = team.all(range.low, Smaller(), 0);
    range.high = team.all(range.high, Larger(), 0);
  }
  return range;
}

DSK_DEVICE float e8m0_to_float(uint32_t code) {
  uint32_t bits = code << 23;
  bits = code == 0 ? 0x00400000u : bits;
  bits = code == 255 ? 0x7fc00000u : bits;
  return float_of(bits);
}

struct Scale {
  float scale;
  int32_t zero;
  int32_t lowest;  // integers: the least value
  uint32_t code;   // E8M0, for DS_SCALING_POWER_OF_TWO
  bool finite;
};

template <class Format>
DSK_DEVICE Scale scale_of(const Range& range, int32_t scaling) {
  Scale s = {0.0f, 0, 0, 0, range.magnitude < 0x7f800000u};
  if constexpr (Format::kIsInteger) {
    constexpr float kCount = static_cast<float>(2 * Format::kHalf - 1);
    s.lowest = 1 - Format::kHalf;
    s.scale = float_of(range.magnitude) / Format::kLargest;
    if (scaling == DS_SCALING_ASYMMETRIC) {
      const float low = of_order_key(range.low);
      s.lowest = -Format::kHalf;
      if (s.finite) s.scale = of_order_key(range.high) / kCount - low / kCount;
      if (s.scale == 0.0f) s.scale = 1.0f;
      if (s.finite) {
        const float zero = rintf(static_cast<float>(-Format::kHalf) - low / s.scale);
        const float top = static_cast<float>(Format::kHalf - 1);
        const float bottom = static_cast<float>(-Format::kHalf);
        s.zero = static_cast<int32_t>(zero < bottom ? bottom : zero > top ? top : zero);
      }
    }
  } else if (scaling == DS_SCALING_POWER_OF_TWO) {
    const int32_t exponent = static_cast<int32_t>(range.magnitude >> 23) - Format::kGreatestExponent;
    s.code = range.magnitude == 0 ? 127u : exponent < 0 ? 0u : static_cast<uint32_t>(exponent);
    if (!s.finite) s.code = 255u;
    s.scale = e8m0_to_float(s.code);
    return s;
  } else {
    s.scale = float_of(range.magnitude) / float_of(Format::kLargestBits);
  }
  if (s.scale == 0.0f) s.scale = 1.0f;
  return s;
}

// Where the codes of a call go, and what belongs to them.
struct Output {
  uint8_t* q;
  void* scales;
  int8_t* zeros;
  int32_t scaling;
};

// For an Output, or the arguments of an op.
template <class To>
DSK_DEVICE void store_scale(const To& a, int64_t group, const Scale& s) {
  if (a.scaling == DS_SCALING_POWER_OF_TWO) {
    static_cast<uint8_t*>(a.scales)[group] = static_cast<uint8_t>(s.code);
    return;
  }
  static_cast<float*>(a.scales)[group] = s.scale;
  if (a.scaling == DS_SCALING_ASYMMETRIC) a.zeros[group] = static_cast<int8_t>(s.zero);
}

}  // namespace dsk::quant
