// Groups of values, wherever they come from, as codes: a team of threads each.
#pragma once

#include "quantize/scales.h"

namespace dsk::quant {

// The codes of up to eight elements; `first` is the place of the first in the sequence of random numbers.
template <class Format, bool kStochastic>
DSK_DEVICE uint64_t encode8(const Scale& s, const float (&x)[kVector], int64_t n, const Rounding& rounding,
                            int64_t first) {
  uint64_t codes = 0;
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    uint32_t code = Format::kZeroCode;  // where the scale is not finite it says so: the group dequantizes to NaN
    if (s.finite) {
      const uint32_t random = kStochastic ? random_bits(rounding, static_cast<uint64_t>(first + i)) : 0u;
      code = Format::template encode<kStochastic>(x[i] / s.scale, s.lowest, s.zero, random);
    }
    if (i < n) codes |= static_cast<uint64_t>(code) << (Format::kBits * i);
  }
  return codes;
}

// Where a group's values, codes and random numbers are.
struct Place {
  int64_t first;  // element
  int64_t count;
  int64_t codes;   // bytes from the beginning of all codes
  int64_t random;  // of the first element
};

// source.place<kBits>(group) says where a group is, source.load8(element, n, values) reads the first n of eight
// elements, zeros behind them.
template <class Format, bool kStochastic, class Source>
__global__ void __launch_bounds__(kThreads, 3)
    quantize_groups(Source source, Output out, Rounding rounding, int width, int64_t groups) {
  const Team team(width);
  const bool is_signed = out.scaling == DS_SCALING_ASYMMETRIC;
  const int64_t step = static_cast<int64_t>(width) * kVector;
  const int64_t mine = static_cast<int64_t>(team.rank()) * kVector;
  // Every team of a block goes round equally often: they meet in shuffles and barriers.
  for (int64_t base = 0; base < groups; base += team.count()) {
    const int64_t group = base + team.number();
    Place at = {0, 0, 0, 0};
    if (group < groups) at = source.template place<Format::kBits>(group);
    float kept[kVector] = {};
    Range range;
    Scale s = {};
    // First the range, then the codes: one loop, so that what reads the source is in the kernel once.
#pragma unroll 1
    for (int pass = 0; pass < 2; ++pass) {
      if (pass == 1) {
        s = scale_of<Format>(over_team(team, range, is_signed), out.scaling);
        if (at.count > 0 && team.rank() == 0) store_scale(out, group, s);
      }
      for (int64_t i = mine; i < at.count; i += step) {
        const int64_t n = at.count - i;
        float x[kVector];
        if (pass == 1 && i == mine) {
#pragma unroll
          for (int k = 0; k < kVector; ++k) x[k] = kept[k];
        } else {
          source.load8(at.first + i, n, x);
        }
        if (pass == 1) {
          const uint64_t codes = encode8<Format, kStochastic>(s, x, n, rounding, at.random + i);
          store_codes<Format::kBits>(out.q + at.codes + code_offset<Format::kBits>(i), n, codes);
          continue;
        }
        widen(range, x, is_signed);
        if (i == mine) {
#pragma unroll
          for (int k = 0; k < kVector; ++k) kept[k] = x[k];
        }
      }
    }
  }
}

// Whether codes of a format may be scaled and grouped so.
template <class Format>
bool is_served(int32_t scaling, int64_t group_size) {
  return group_size >= 1 && group_size % codes_per_unit(Format::kBits) == 0 &&
         (scaling == DS_SCALING_SYMMETRIC ||
          scaling == (Format::kIsInteger ? DS_SCALING_ASYMMETRIC : DS_SCALING_POWER_OF_TWO));
}

// Quantizes `groups` groups of at most `longest` elements to a format.
template <class Source>
int32_t quantize_all(const Source& source, const Output& out, int32_t format, const Rounding& rounding, int64_t longest,
                     int64_t groups, const ds_exec* exec) {
  return with_format(format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    const int width = team_width(longest);
    const Shape shape = team_shape(groups, width);
    return rounding.stochastic
               ? launch(exec, shape, quantize_groups<Format, true, Source>, source, out, rounding, width, groups)
               : launch(exec, shape, quantize_groups<Format, false, Source>, source, out, rounding, width, groups);
  });
}

}  // namespace dsk::quant
