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

// Codes of a format that is known when the kernel is compiled.
template <class Format>
struct Known {
  DSK_DEVICE uint64_t load(const uint8_t* chunk, int64_t first, int64_t n) const {
    return load_codes<Format::kBits>(chunk + code_offset<Format::kBits>(first), n);
  }
  DSK_DEVICE float value(uint64_t codes, int place, int32_t zero) const {
    return Format::decode(code_at<Format::kBits>(codes, place), zero);
  }
};

// Codes of a float format that is known when the kernel runs: every thread takes the same branches. A kernel with all
// formats in it would be large, and slow to compile.
class AnyFloat {
 public:
  DSK_DEVICE explicit AnyFloat(int32_t format) {
    switch (format) {
      case DS_FORMAT_E4M3FN:
        set<E4M3>();
        break;
      case DS_FORMAT_E5M2:
        set<E5M2>();
        break;
      case DS_FORMAT_E3M2:
        set<E3M2>();
        break;
      case DS_FORMAT_E2M3:
        set<E2M3>();
        break;
      default:
        set<E2M1>();
    }
  }

  DSK_DEVICE uint64_t load(const uint8_t* chunk, int64_t first, int64_t n) const {
    if (bits_ == 8) return load_codes<8>(chunk + code_offset<8>(first), n);
    if (bits_ == 6) return load_codes<6>(chunk + code_offset<6>(first), n);
    return load_codes<4>(chunk + code_offset<4>(first), n);
  }
  DSK_DEVICE float value(uint64_t codes, int place, int32_t) const {
    const uint32_t code = static_cast<uint32_t>(codes >> (bits_ * place));
    const uint32_t magnitude = code & ((1u << (bits_ - 1)) - 1u);
    const uint32_t sign = (code >> (bits_ - 1) & 1u) << 31;
    float value = float_of(magnitude << shift_) * factor_;  // as FloatFormat does
    if (magnitude >= special_) value = float_of(magnitude == infinity_ ? 0x7f800000u : 0x7fc00000u);
    return float_of(sign | bits_of(value));
  }

 private:
  template <class Format>
  DSK_DEVICE void set() {
    bits_ = Format::kBits;
    shift_ = Format::kShift;
    factor_ = float_of(Format::kSmallestNormalBits + (126u << 23));
    special_ = Format::kTop + 1;
    infinity_ = std::is_same_v<Format, E5M2> ? special_ : ~0u;
  }

  int bits_;
  int shift_;         // of a mantissa to that of float32
  float factor_;      // what the difference of the biases makes
  uint32_t special_;  // magnitude from which on codes are no numbers
  uint32_t infinity_;
};

// The sum over ranks of the first n of eight elements, in the order of ranks; zeros behind them. `first` is a multiple
// of what the format packs together.
template <class Codes>
DSK_DEVICE void sum8(const Codes& format, const Chunks& c, int64_t first, int64_t n, float (&sum)[kVector]) {
  const int64_t group = first / c.group_size;
  const int64_t left = (group + 1) * c.group_size - first;  // of its group
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] = 0.0f;
  for (int64_t rank = 0; rank < c.ranks; ++rank) {
    const uint64_t codes = format.load(c.q + rank * c.bytes, first, n);
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
      sum[i] += format.value(codes, i, zero) * scale;
    }
  }
  const float ranks = static_cast<float>(c.ranks);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (c.average != 0) sum[i] = sum[i] / ranks;
    if (i >= n) sum[i] = 0.0f;
  }
}

// The same for any format: fast where gradients are sent as integers.
DSK_DEVICE void sum8(const Chunks& c, int64_t first, int64_t n, float (&sum)[kVector]) {
  if (c.format == DS_FORMAT_INT8) return sum8(Known<Int8>(), c, first, n, sum);
  if (c.format == DS_FORMAT_INT4) return sum8(Known<Int4>(), c, first, n, sum);
  sum8(AnyFloat(c.format), c, first, n, sum);
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
