// The split of a tensor into groups, chunks and tasks, and the scale of a group.
#pragma once

#include "quantize/formats.h"
#include "row_split.h"

namespace dsk::quant {

// Note [Chunks of groups]
// A chunk is at most kBlock elements: as many whole groups as fit, or a part of one large group. Groups, and so chunks,
// begin at a whole unit of packing, so tasks share no byte.

// Calls body(first_group, last_group) for runs of groups, in parallel.
template <typename Body>
void for_group_runs(const ds_exec* exec, int64_t numel, int64_t group_size, const Body& body) {
  const int64_t groups = ceil_div(numel, group_size);
  const int64_t in_chunk = max64(1, kBlock / group_size);
  const int64_t per_task = in_chunk * max64(1, 32 * kBlock / (in_chunk * group_size));
  parallel_for(exec, ceil_div(groups, per_task), [&](int64_t task) {
    const int64_t end = min64(groups, (task + 1) * per_task);
    for (int64_t group = task * per_task; group < end; group += in_chunk) {
      body(group, min64(end, group + in_chunk));
    }
  });
}

struct Range {
  uint32_t magnitude = 0;  // bits of the largest; as integers NaN is above infinity, and that above every number
  int32_t low = 0;         // keys of the least and the greatest, and of zero
  int32_t high = 0;
};

// An integer that is ordered as the float is, and 0 for zero.
DSK_INLINE int32_t order_key(uint32_t bits) {
  return static_cast<int32_t>(bits ^ (static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31) & 0x7fffffffu));
}
DSK_INLINE float of_order_key(int32_t key) {
  return float_of(static_cast<uint32_t>(key) ^ (static_cast<uint32_t>(key >> 31) & 0x7fffffffu));
}

DSK_INLINE void widen(Range& range, const float* __restrict x, int64_t n) {
  uint32_t magnitude = range.magnitude;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t here = bits_of(x[i]) & 0x7fffffffu;
    magnitude = here > magnitude ? here : magnitude;
  }
  range.magnitude = magnitude;
}

DSK_INLINE void widen_signed(Range& range, const float* __restrict x, int64_t n) {
  int32_t low = range.low;
  int32_t high = range.high;
  for (int64_t i = 0; i < n; ++i) {
    const int32_t key = order_key(bits_of(x[i]));
    low = key < low ? key : low;
    high = key > high ? key : high;
  }
  range.low = low;
  range.high = high;
}

DSK_INLINE float e8m0_to_float(uint8_t code) {
  uint32_t bits = static_cast<uint32_t>(code) << 23;
  bits = code == 0 ? 0x00400000u : bits;
  bits = code == 255 ? 0x7fc00000u : bits;
  return float_of(bits);
}

struct Scale {
  float scale;
  int32_t zero;
  int32_t lowest;  // integers: the least value
  bool finite;
};

// Writes scale and zero point of a group, and returns them.
template <class Format>
inline Scale store_scale(const ds_quantize_args& a, int64_t group, const Range& range) {
  Scale s = {0.0f, 0, 0, range.magnitude < 0x7f800000u};
  if constexpr (Format::kIsInteger) {
    constexpr float kCount = static_cast<float>(2 * Format::kHalf - 1);
    s.lowest = 1 - Format::kHalf;
    s.scale = float_of(range.magnitude) / Format::kLargest;
    if (a.scaling == DS_SCALING_ASYMMETRIC) {
      const float low = of_order_key(range.low);
      s.lowest = -Format::kHalf;
      if (s.finite) s.scale = of_order_key(range.high) / kCount - low / kCount;
      if (s.scale == 0.0f) s.scale = 1.0f;
      if (s.finite) {
        const float zero = __builtin_nearbyintf(static_cast<float>(-Format::kHalf) - low / s.scale);
        const float top = static_cast<float>(Format::kHalf - 1);
        const float bottom = static_cast<float>(-Format::kHalf);
        s.zero = static_cast<int32_t>(zero < bottom ? bottom : zero > top ? top : zero);
      }
      a.zeros[group] = static_cast<int8_t>(s.zero);
    }
  } else if (a.scaling == DS_SCALING_POWER_OF_TWO) {
    const int32_t exponent = static_cast<int32_t>(range.magnitude >> 23) - Format::kGreatestExponent;
    uint8_t code = static_cast<uint8_t>(range.magnitude == 0 ? 127 : exponent < 0 ? 0 : exponent);
    if (!s.finite) code = 255;
    static_cast<uint8_t*>(a.scales)[group] = code;
    s.scale = e8m0_to_float(code);
    return s;
  } else {
    s.scale = float_of(range.magnitude) / float_of(Format::kLargestBits);
  }
  if (s.scale == 0.0f) s.scale = 1.0f;
  static_cast<float*>(a.scales)[group] = s.scale;
  return s;
}

}  // namespace dsk::quant
