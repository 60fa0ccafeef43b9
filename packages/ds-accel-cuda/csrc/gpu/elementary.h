// exp, tanh, erf and log with the bits of ds-accel-cpu, on every device.
//
// Note [Elementary functions]
// The device's own functions differ from device to device, so these are ours, the same as in ds-accel-cpu: float32
// products and sums in a fixed order, no branch, no table, no fma. Largest error over all float32, as measured there
// against float64: exp 1.0, tanh 1.6, erf 1.3 units in the last place; infinities, NaNs, zeros of
// both signs and subnormal results are as IEEE 754 recommends. Polynomials are near-minimax fits (C. Lawson's
// iteratively reweighted least squares on Chebyshev nodes). Source: argument reductions as in W. Cody, W. Waite,
// "Software Manual for the Elementary Functions", 1980, chapters 6 and 13; erf above 0.95 as 1 - exp(polynomial), as in
// W. Cody, "Rational Chebyshev approximations for the error function", Mathematics of Computation 23, 1969, with a
// polynomial for the whole exponent.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

DSK_DEVICE float abs_of(float x) { return float_of(bits_of(x) & 0x7fffffffu); }

// magnitude with the sign of x.
DSK_DEVICE float with_sign(float magnitude, float x) {
  return float_of((bits_of(magnitude) & 0x7fffffffu) | (bits_of(x) & 0x80000000u));
}

// e^x.
DSK_DEVICE float exp_of(float x) {
  constexpr float kShift = 0x1.8p23f;   // adding it leaves the nearest whole number in the low bits
  float y = x < -104.0f ? -104.0f : x;  // NaN fails both comparisons and comes through
  y = y > 89.0f ? 89.0f : y;
  const float shifted = y * 0x1.715476p+0f + kShift;
  const float n = shifted - kShift;
  const float r = (y - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;  // ln 2 in two parts; the first product is exact
  float p = 0.0013950384f;
  p = p * r + 0.008368851f;
  p = p * r + 0.04166621f;
  p = p * r + 0.1666652f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, so that results below the smallest normal number are rounded once, by the last product.
  const int32_t whole = static_cast<int32_t>(bits_of(shifted) - bits_of(kShift));
  const int32_t half = whole >> 1;
  const float first = float_of(static_cast<uint32_t>(half + 127) << 23);
  const float second = float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * first * second;
}

DSK_DEVICE float tanh_of(float x) {
  const float a = abs_of(x);
  const float z = x * x;
  float p = -0.005528624635189772f;
  p = p * z + 0.02048330567777157f;
  p = p * z - 0.05369296297430992f;
  p = p * z + 0.1333089917898178f;
  p = p * z - 0.3333326280117035f;
  const float small = p * z * a + a;
  const float large = 1.0f - 2.0f / (exp_of(a + a) + 1.0f);
  return with_sign(a < 0.625f ? small : large, x);
}

DSK_DEVICE float erf_of(float x) {
  const float a = abs_of(x);
  const float z = x * x;
  float p = 7.889119297033176e-05f;
  p = p * z - 0.0008020841050893068f;
  p = p * z + 0.005189535208046436f;
  p = p * z - 0.026854444295167923f;
  p = p * z + 0.11283600330352783f;
  p = p * z - 0.3761262595653534f;
  p = p * z + 0.12837916612625122f;
  const float small = p * x + x;
  float t = a > 4.0f ? 4.0f : a;
  float q = -2.091289934469387e-05f;
  q = q * t + 0.00043233815813437104f;
  q = q * t - 0.004160682205110788f;
  q = q * t + 0.0250918697565794f;
  q = q * t - 0.10823714733123779f;
  q = q * t - 0.6333861947059631f;
  q = q * t - 1.12949538230896f;
  q = q * t + 0.00017058993398677558f;
  const float large = 1.0f - exp_of(q);
  return a < 0.95f ? small : with_sign(large, x);
}

// Natural logarithm of a double above 0 and finite, to about one unit in its last place; other values come back as the
// limits do: -inf for 0, inf for inf, NaN for NaN. For one value a row, so it may branch.
DSK_DEVICE double log_of(double x) {
  if (!(x > 0.0)) return x == 0.0 ? -HUGE_VAL : (x - x) / (x - x);
  if (x > 1.7976931348623157e308) return x;
  int64_t bits;
  memcpy(&bits, &x, 8);
  // x = m * 2^e with m in [sqrt(1/2), sqrt(2)); sums of exponentials are never subnormal.
  const int64_t e = (bits - 0x3fe6a09e667f3bcd) >> 52;
  bits -= e * (int64_t{1} << 52);
  double m;
  memcpy(&m, &bits, 8);
  const double s = (m - 1.0) / (m + 1.0);  // log m = 2 artanh s, |s| < 0.172
  const double z = s * s;
  double p = 0.0;
  for (int k = 21; k >= 3; k -= 2) p = (p + 1.0 / k) * z;
  return static_cast<double>(e) * 0x1.62e42fefa39efp-1 + (2.0 * s + 2.0 * s * p);
}

}  // namespace dsk
