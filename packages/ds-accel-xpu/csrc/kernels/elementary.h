// exp, tanh, erf and log as the CPU kernels have them: float32 products and sums in a fixed order, no fma.
//
// Source and errors: Note [Elementary functions] in ds-accel-cpu's csrc/kernels/elementary.h. log is the series of the
// inverse hyperbolic tangent, as in W. Cody, W. Waite, "Software Manual for the Elementary Functions", 1980, chapter 5.
#ifndef DSK_XPU_ELEMENTARY_H
#define DSK_XPU_ELEMENTARY_H

#include "exact.h"

static inline float with_sign(float magnitude, float x) {
  return as_float((as_uint(magnitude) & 0x7fffffffu) | (as_uint(x) & 0x80000000u));
}

static inline float exp_of(float x) {
  const float shift = 0x1.8p23f;        // adding it leaves the nearest whole number in the low bits
  float y = x < -104.0f ? -104.0f : x;  // NaN fails both comparisons and comes through
  y = y > 89.0f ? 89.0f : y;
  const float shifted = y * 0x1.715476p+0f + shift;
  const float n = shifted - shift;
  const float r = (y - n * 0x1.63p-1f) - n * -0x1.bd0106p-13f;  // ln 2 in two parts; the first product is exact
  float p = 0.0013950384f;
  p = p * r + 0.008368851f;
  p = p * r + 0.04166621f;
  p = p * r + 0.1666652f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const int whole = (int)(as_uint(shifted) - as_uint(shift));
  const int half_of = whole >> 1;  // 2^n in two factors: results below the smallest normal number are rounded once
  return p * as_float((uint)(half_of + 127) << 23) * as_float((uint)(whole - half_of + 127) << 23);
}

static inline float tanh_of(float x) {
  const float a = fabs(x);
  const float z = x * x;
  float p = -0.005528624635189772f;
  p = p * z + 0.02048330567777157f;
  p = p * z - 0.05369296297430992f;
  p = p * z + 0.1333089917898178f;
  p = p * z - 0.3333326280117035f;
  const float small = p * z * a + a;
  const float large = 1.0f - divide(2.0f, exp_of(a + a) + 1.0f);
  return with_sign(a < 0.625f ? small : large, x);
}

static inline float erf_of(float x) {
  const float a = fabs(x);
  const float z = x * x;
  float p = 7.889119297033176e-05f;
  p = p * z - 0.0008020841050893068f;
  p = p * z + 0.005189535208046436f;
  p = p * z - 0.026854444295167923f;
  p = p * z + 0.11283600330352783f;
  p = p * z - 0.3761262595653534f;
  p = p * z + 0.12837916612625122f;
  const float small = p * x + x;
  const float t = a > 4.0f ? 4.0f : a;
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

// Natural logarithm; -inf for 0, NaN below it.
static inline float log_of(float x) {
  if (!(x > 0.0f)) return x == 0.0f ? -INFINITY : NAN;
  if (x == INFINITY) return x;
  int e;
  float m = mantissa_of(x, &e);
  if (m > 0x1.6a09e6p+0f) {  // into [sqrt(1/2), sqrt(2)]
    m = 0.5f * m;
    e += 1;
  }
  const float s = divide(m - 1.0f, m + 1.0f);
  const float z = s * s;
  float p = 1.0f / 9.0f;
  p = p * z + 1.0f / 7.0f;
  p = p * z + 1.0f / 5.0f;
  p = p * z + 1.0f / 3.0f;
  const float n = (float)e;
  return n * 0x1.62e4p-1f + (2.0f * s + (2.0f * s * (z * p) + n * 0x1.7f7d1cp-20f));  // ln 2 in two parts
}

#endif
