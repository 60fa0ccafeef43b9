// Chunks of codes that ranks sent, added up.
#pragma once

#include "quantize/scales.h"

namespace dsk::quant {

struct Chunks {
  const uint8_t* q;
  const void* scales;
  const int8_t* zeros;
  int32_t format;
  int32_t scaling;
  int32_t average;
  int64_t ranks;
  int64_t numel;  // of a chunk, as what follows
  int64_t group_size;
  int64_t bytes;
  int64_t groups;
};

template <class Args>
Chunks chunks_of(const Args& a, int bits) {
  const int64_t units = ceil_div(a.numel, codes_per_unit(bits));
  return {static_cast<const uint8_t*>(a.q),
          a.scales,
          a.zeros,
          a.format,
          a.scaling,
          a.average,
          a.ranks,
          a.numel,
          a.group_size,
          units * unit_bytes(bits),
          ceil_div(a.numel, a.group_size)};
}

DSK_DEVICE float scale_at(const Chunks& c, int64_t group) {
  if (c.scaling == DS_SCALING_POWER_OF_TWO) return e8m0_to_float(static_cast<const uint8_t*>(c.scales)[group]);
  return static_cast<const float*>(c.scales)[group];
}

DSK_DEVICE int32_t zero_at(const Chunks& c, int64_t group) {
  return c.scaling == DS_SCALING_ASYMMETRIC ? c.zeros[group] : 0;
}

// The sum over ranks of the first n of eight elements, in the order of ranks; zeros behind them. `first` is a multiple
// of 4, so that it begins a unit of codes.
template <class Format>
DSK_DEVICE void sum8(const Chunks& c, int64_t first, int64_t n, float (&sum)[kVector]) {
  const int64_t group = first / c.group_size;
  const int64_t left = (group + 1) * c.group_size - first;  // of its group
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] = 0.0f;
  for (int64_t rank = 0; rank < c.ranks; ++rank) {
    const uint64_t codes = load_codes<Format::kBits>(c.q + rank * c.bytes + code_offset<Format::kBits>(first), n);
    int64_t at = rank * c.groups + group;
    float scale = scale_at(c, at);
    int32_t zero = zero_at(c, at);
    int64_t rest = left;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (rest == 0 && i < n) {
        rest = c.group_size;
        scale = scale_at(c, ++at);
        zero = zero_at(c, at);
      }
      --rest;
      sum[i] += Format::decode(code_at<Format::kBits>(codes, i), zero) * scale;
    }
  }
  const float ranks = static_cast<float>(c.ranks);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (c.average != 0) sum[i] = sum[i] / ranks;
    if (i >= n) sum[i] = 0.0f;
  }
}

// The same where the format is known when the kernel runs: every thread takes the same branch.
DSK_DEVICE void sum8(const Chunks& c, int64_t first, int64_t n, float (&sum)[kVector]) {
  switch (c.format) {
    case DS_FORMAT_INT8:
      return sum8<Int8>(c, first, n, sum);
    case DS_FORMAT_INT4:
      return sum8<Int4>(c, first, n, sum);
    case DS_FORMAT_E4M3FN:
      return sum8<E4M3>(c, first, n, sum);
    case DS_FORMAT_E5M2:
      return sum8<E5M2>(c, first, n, sum);
    case DS_FORMAT_E3M2:
      return sum8<E3M2>(c, first, n, sum);
    case DS_FORMAT_E2M3:
      return sum8<E2M3>(c, first, n, sum);
    default:
      return sum8<E2M1>(c, first, n, sum);
  }
}

// What every op on chunks asks of its arguments.
template <class Format, class Args>
bool are_chunks(const Args& a) {
  if (a.ranks < 1 || a.numel < 0 || a.group_size < 1 || a.group_size % codes_per_unit(Format::kBits) != 0) return false;
  if (a.scaling == DS_SCALING_SYMMETRIC) return true;
  if (!Format::kIsInteger) return a.scaling == DS_SCALING_POWER_OF_TWO;
  return a.scaling == DS_SCALING_ASYMMETRIC && (a.zeros != nullptr || a.numel == 0);
}

}  // namespace dsk::quant
