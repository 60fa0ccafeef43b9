// Fused multiply-add with one rounding on every instruction-set level.
#pragma once

#include <cstdint>
#include <cstring>

#include "common.h"

namespace dsk {

#if defined(__FMA__) || defined(__aarch64__)
DSK_INLINE float fma(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
// Without the instruction: the product is exact in double; the sum is rounded to odd, so that the second rounding, to
// float, is the only one that counts. Source: S. Boldo, G. Melquiond, "Emulation of a FMA and correctly rounded sums:
// proved algorithms using rounding to odd", IEEE Transactions on Computers 57(4), 2008.
DSK_INLINE float fma(float a, float b, float c) {
  const double product = static_cast<double>(a) * static_cast<double>(b);
  const double addend = c;
  const double sum = product + addend;
  const double back = sum - product;
  const double error = (product - (sum - back)) + (addend - back);
  int64_t bits;
  std::memcpy(&bits, &sum, 8);
  const int64_t inexact = (error > 0.0) | (error < 0.0);  // both false for NaN, which infinities produce here
  const int64_t toward = ((error > 0.0) == (sum > 0.0)) ? 1 : -1;
  bits += (inexact & ~bits & 1) * toward;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return static_cast<float>(odd);
}
#endif

}  // namespace dsk
