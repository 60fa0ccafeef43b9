// quantize and dequantize: groups of consecutive elements as codes with a scale each.
//
// A group is the work of `lanes` neighbouring work-items, a power of two that divides kGroup. Groups begin at a whole
// unit of packing, so work-items share no byte.
#include "exact.h"
#include "formats.h"

struct Scale {
  float scale;
  int zero;
  int lowest;  // integers: the least value
  bool finite;
};

// An integer that is ordered as the float is, and 0 for zero.
static inline int order_key(float x) {
  const uint bits = as_uint(x);
  return (int)(bits ^ ((uint)((int)bits >> 31) & 0x7fffffffu));
}
static inline float of_order_key(int key) { return as_float((uint)key ^ ((uint)(key >> 31) & 0x7fffffffu)); }

// What a group's largest magnitude, least and greatest value say of its scale; `write` puts it into the tensors.
template <class Format>
static inline Scale scale_of(uint magnitude, int low_key, int high_key, int scaling, Target scales, global char* zeros,
                             long group, bool write) {
  const bool finite = magnitude < 0x7f800000u;
  Scale s = {divide(as_float(magnitude), Format::largest()), 0, 0, finite};
  if (scaling == kPowerOfTwo) {
    const int exponent = (int)(magnitude >> 23) - Format::kGreatestExponent;
    const uint code = !finite ? 255u : magnitude == 0u ? 127u : (uint)max(exponent, 0);
    if (write) ((global uchar*)scales)[group] = (uchar)code;
    s.scale = e8m0_to_float(code);
    return s;
  }
  if (Format::kIsInteger) {
    const int half_of = 1 << (Format::kBits - 1);
    s.lowest = 1 - half_of;
    if (scaling == kAsymmetric) {
      const float low = of_order_key(low_key);
      const float count = (float)(2 * half_of - 1);
      s.lowest = -half_of;
      if (finite) s.scale = divide(of_order_key(high_key), count) - divide(low, count);
      if (s.scale == 0.0f) s.scale = 1.0f;
      if (finite) {
        s.zero = (int)clamp(rint((float)-half_of - divide(low, s.scale)), (float)-half_of, (float)(half_of - 1));
      }
      if (write) zeros[group] = (char)s.zero;
    }
  }
  if (s.scale == 0.0f) s.scale = 1.0f;
  if (write) ((global float*)scales)[group] = s.scale;
  return s;
}

// The codes [i, i + per_unit) of a group that ends at `count`; those beyond are 0.
template <class Format>
static inline uint unit_of(int dtype, Source x, long start, long i, long count, const Scale s, bool by_chance,
                           ulong keys, ulong offset) {
  const int per_unit = Format::kBits == 8 ? 1 : Format::kBits == 4 ? 2 : 4;
  uint word = 0u;
  for (int k = 0; k < per_unit && i + k < count; ++k) {
    uint code = Format::kZeroCode;
    if (s.finite) {  // else the scale says it: dequantized, the whole group is NaN
      const uint random = by_chance ? random_bits(keys, offset + (ulong)(start + i + k)) : 0u;
      const float ratio = divide(load(dtype, x, start + i + k), s.scale);
      code = Format::encode(ratio, s.lowest, s.zero, by_chance, random);
    }
    word |= code << (Format::kBits * k);
  }
  return word;
}

template <class Format>
static inline void write_codes(int dtype, Source x, long start, long count, const Scale s, bool by_chance, ulong keys,
                               ulong offset, global uchar* q, uint lane, uint lanes) {
  const int per_unit = Format::kBits == 8 ? 1 : Format::kBits == 4 ? 2 : 4;
  const int bytes = Format::kBits == 6 ? 3 : 1;
  for (long i = (long)lane * per_unit; i < count; i += (long)lanes * per_unit) {
    const uint word = unit_of<Format>(dtype, x, start, i, count, s, by_chance, keys, offset);
    const long at = (start + i) / per_unit * bytes;
    for (int byte = 0; byte < bytes; ++byte) q[at + byte] = (uchar)(word >> (8 * byte));
  }
}

kernel void quantize(int dtype, int format, int scaling, int lanes, long numel, long group_size, int by_chance,
                     ulong keys, ulong offset, const global void* x, global uchar* q, global void* scales,
                     global char* zeros) {
  local uint magnitudes[kGroup];
  local int lows[kGroup];
  local int highs[kGroup];
  const uint here = (uint)get_local_id(0);
  const uint lane = here % (uint)lanes;
  const long groups = (numel + group_size - 1) / group_size;
  const long together = kGroup / lanes;
  for (long first = (long)get_group_id(0) * together; first < groups; first += (long)get_num_groups(0) * together) {
    const long group = first + (long)(here / (uint)lanes);
    const long start = group * group_size;
    const long count = group < groups ? min(group_size, numel - start) : 0l;
    uint magnitude = 0u;
    int low = 0;
    int high = 0;
    for (long i = (long)lane; i < count; i += lanes) {
      const float value = load(dtype, x, start + i);
      magnitude = max(magnitude, as_uint(value) & 0x7fffffffu);  // NaN is above infinity, and that above every number
      low = min(low, order_key(value));
      high = max(high, order_key(value));
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    magnitudes[here] = magnitude;
    lows[here] = low;
    highs[here] = high;
    barrier(CLK_LOCAL_MEM_FENCE);
    for (uint width = (uint)lanes / 2u; width > 0u; width /= 2u) {
      if (lane < width) {
        magnitudes[here] = max(magnitudes[here], magnitudes[here + width]);
        lows[here] = min(lows[here], lows[here + width]);
        highs[here] = max(highs[here], highs[here + width]);
      }
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    magnitude = magnitudes[here - lane];
    low = lows[here - lane];
    high = highs[here - lane];
    if (group >= groups) continue;
#define DSK_WRITE(Format)                                                                                \
  write_codes<Format>(dtype, x, start, count,                                                            \
                      scale_of<Format>(magnitude, low, high, scaling, scales, zeros, group, lane == 0u), \
                      by_chance != 0, keys, offset, q, lane, (uint)lanes)
    DSK_FOR_FORMAT(format, DSK_WRITE)
  }
}

template <class Format>
static inline void read_codes(int dtype, int scaling, long numel, long group_size, const global uchar* q, Source scales,
                              const global char* zeros, Target x) {
  const int per_unit = Format::kBits == 8 ? 1 : Format::kBits == 4 ? 2 : 4;
  const int bytes = Format::kBits == 6 ? 3 : 1;
  const uint mask = (1u << Format::kBits) - 1u;
  for (long unit = item(); unit * per_unit < numel; unit += items()) {
    const long group = unit * per_unit / group_size;
    const float scale = scaling == kPowerOfTwo ? e8m0_to_float((uint)((const global uchar*)scales)[group])
                                               : ((const global float*)scales)[group];
    const int zero = scaling == kAsymmetric ? (int)zeros[group] : 0;
    uint word = 0u;
    for (int byte = 0; byte < bytes; ++byte) word |= (uint)q[unit * bytes + byte] << (8 * byte);
    for (int k = 0; k < per_unit && unit * per_unit + k < numel; ++k) {
      const float value = Format::decode((word >> (Format::kBits * k)) & mask, zero);
      store(dtype, x, unit * per_unit + k, value * scale);
    }
  }
}

kernel void dequantize(int dtype, int format, int scaling, long numel, long group_size, const global uchar* q,
                       const global void* scales, const global char* zeros, global void* x) {
#define DSK_READ(Format) read_codes<Format>(dtype, scaling, numel, group_size, q, scales, zeros, x)
  DSK_FOR_FORMAT(format, DSK_READ)
}

// One more rank's codes of a unit added to sums.
template <class Format>
static inline void add_codes(const global uchar* q, float scale, int zero, long unit, float* sums) {
  const int per_unit = Format::kBits == 8 ? 1 : Format::kBits == 4 ? 2 : 4;
  const int bytes = Format::kBits == 6 ? 3 : 1;
  uint word = 0u;
  for (int byte = 0; byte < bytes; ++byte) word |= (uint)q[unit * bytes + byte] << (8 * byte);
  for (int k = 0; k < per_unit; ++k) {
    sums[k] += Format::decode((word >> (Format::kBits * k)) & ((1u << Format::kBits) - 1u), zero) * scale;
  }
}

// The sum of what ranks sent, in their order; rows of codes are `row_bytes` apart, rows of scales `groups`.
kernel void quantized_reduce(int dtype, int format, int scaling, int average, int per_unit, long ranks, long numel,
                             long group_size, long row_bytes, long groups, const global uchar* q,
                             const global void* scales, const global char* zeros, global void* y) {
  for (long unit = item(); unit * per_unit < numel; unit += items()) {
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (long rank = 0; rank < ranks; ++rank) {
      const long group = rank * groups + unit * per_unit / group_size;
      const float scale = scaling == kPowerOfTwo ? e8m0_to_float((uint)((const global uchar*)scales)[group])
                                                 : ((const global float*)scales)[group];
      const int zero = scaling == kAsymmetric ? (int)zeros[group] : 0;
#define DSK_ADD(Format) add_codes<Format>(q + rank * row_bytes, scale, zero, unit, sums)
      DSK_FOR_FORMAT(format, DSK_ADD)
    }
    for (int k = 0; k < per_unit && unit * per_unit + k < numel; ++k) {
      store(dtype, y, unit * per_unit + k, average != 0 ? divide(sums[k], (float)ranks) : sums[k]);
    }
  }
}
