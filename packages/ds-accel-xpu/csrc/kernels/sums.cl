// sum_of_squares in float64, on devices with and without float64: sums are made of integer operations.
//
// Squares of float32 are exact in float64, never subnormal and never negative, so all that is needed is the sum of two
// numbers that are not negative, rounded to nearest even. The order is fixed: a work-group sums kPerGroup elements,
// each of its items every kGroup-th, items are added pairwise, and a last work-group does the same with the partial
// sums.
#include "common.h"

#define kPerGroup 16384 /* csrc/host/sums.cpp says the same */

// The bits of x * x as float64.
static inline ulong square_of(float x) {
  const uint bits = as_uint(x) & 0x7fffffffu;
  if (bits >= 0x7f800000u) return bits > 0x7f800000u ? 0x7ff8000000000000ul : 0x7ff0000000000000ul;
  if (bits == 0u) return 0ul;
  uint mantissa = (bits & 0x007fffffu) | 0x00800000u;
  int exponent = (int)(bits >> 23) - 150;  // of the last bit
  if (bits < 0x00800000u) {
    const uint up = clz(bits) - 8u;
    mantissa = bits << up;
    exponent = -149 - (int)up;
  }
  const ulong product = (ulong)mantissa * (ulong)mantissa;  // 47 or 48 bits
  const uint up = (uint)clz(product) - 11u;                 // until bit 52 is the first
  return ((ulong)(2 * exponent - (int)up + 52 + 1023 - 1) << 52) + (product << up);
}

// The bits of a + b for numbers that are not negative; infinities and NaNs come through.
static inline ulong add_up(ulong a, ulong b) {
  const ulong high = max(a, b);
  ulong low = min(a, b);
  if (low == 0ul || high >= 0x7ff0000000000000ul) return high;
  const uint apart = (uint)(high >> 52) - (uint)(low >> 52);
  if (apart > 55u) return high;
  const ulong one = 1ul << 52;
  low = ((low & (one - 1ul)) | one) << 3;
  const ulong lost = low & ((1ul << apart) - 1ul);
  ulong sum = (((high & (one - 1ul)) | one) << 3) + ((low >> apart) | (lost != 0ul ? 1ul : 0ul));
  ulong exponent = high >> 52;
  if (sum >= one << 4) {
    sum = (sum >> 1) | (sum & 1ul);
    exponent += 1ul;
  }
  const ulong rest = sum & 7ul;
  sum >>= 3;
  sum += rest > 4ul || (rest == 4ul && (sum & 1ul) != 0ul) ? 1ul : 0ul;
  return (exponent << 52) + (sum - one);
}

static inline ulong group_total(ulong value, local ulong* scratch) {
  const uint here = (uint)get_local_id(0);
  scratch[here] = value;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint width = kGroup / 2; width > 0; width /= 2) {
    if (here < width) scratch[here] = add_up(scratch[here], scratch[here + width]);
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return scratch[0];
}

kernel void squares(int dtype, long numel, const global void* x, global ulong* partial) {
  local ulong scratch[kGroup];
  const long first = (long)get_group_id(0) * kPerGroup;
  const long last = min(numel, first + kPerGroup);
  ulong sum = 0ul;
  for (long i = first + (long)get_local_id(0); i < last; i += kGroup) sum = add_up(sum, square_of(load(dtype, x, i)));
  sum = group_total(sum, scratch);
  if (get_local_id(0) == 0) partial[get_group_id(0)] = sum;
}

kernel void add_squares(long count, const global ulong* partial, global ulong* out) {
  local ulong scratch[kGroup];
  ulong sum = 0ul;
  for (long i = (long)get_local_id(0); i < count; i += kGroup) sum = add_up(sum, partial[i]);
  sum = group_total(sum, scratch);
  if (get_local_id(0) == 0) out[0] = sum;
}
