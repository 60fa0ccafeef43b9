// exp and erf for kernels whose outputs need not have the bits of the CPU's.
//
// Note [Exponentials of rows]
// The kernels that use these would wait for arithmetic rather than memory with exp_of of gpu/elementary.h (about 33
// instructions). With fma half are left, and unlike the device's own expf the bits are the same on every device and
// under emulation, so what the cases prove there holds everywhere. Largest error against float64, measured at every
// fifth float32: 1.04 units in the last place for exp_fused where it is a normal number (it is 0 from -87.7 down and
// infinite from 88.4 up; infinities and NaNs as IEEE 754), 1.1 for erf_fused.
// Source: argument reduction and polynomials as in gpu/elementary.h.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

// e^x.
DSK_DEVICE float exp_fused(float x) {
  constexpr float kShift = 0x1.8p23f;   // adding it leaves the nearest whole number in the low bits
  float y = x < -88.02f ? -88.02f : x;  // 2^-127 is 0 below; NaN fails both comparisons and comes through
  y = y > 88.73f ? 88.73f : y;          // 2^128 is infinite below
  const float shifted = fmaf(y, 0x1.715476p+0f, kShift);
  const float n = shifted - kShift;
  const float r = fmaf(n, 0x1.05c610p-29f, fmaf(n, -0x1.62e430p-1f, y));  // ln 2 in two parts
  float p = 0.0013950384f;
  p = fmaf(p, r, 0.008368851f);
  p = fmaf(p, r, 0.04166621f);
  p = fmaf(p, r, 0.1666652f);
  p = fmaf(p, r, 0.5f);
  p = fmaf(p, r * r, r) + 1.0f;
  return p * float_of((bits_of(shifted) - bits_of(kShift) + 127u) << 23);
}

DSK_DEVICE float erf_fused(float x) {
  const float a = float_of(bits_of(x) & 0x7fffffffu);
  const float z = x * x;
  float p = 7.889119297033176e-05f;
  p = fmaf(p, z, -0.0008020841050893068f);
  p = fmaf(p, z, 0.005189535208046436f);
  p = fmaf(p, z, -0.026854444295167923f);
  p = fmaf(p, z, 0.11283600330352783f);
  p = fmaf(p, z, -0.3761262595653534f);
  p = fmaf(p, z, 0.12837916612625122f);
  const float small = fmaf(p, x, x);
  const float t = a > 4.0f ? 4.0f : a;
  float q = -2.091289934469387e-05f;
  q = fmaf(q, t, 0.00043233815813437104f);
  q = fmaf(q, t, -0.004160682205110788f);
  q = fmaf(q, t, 0.0250918697565794f);
  q = fmaf(q, t, -0.10823714733123779f);
  q = fmaf(q, t, -0.6333861947059631f);
  q = fmaf(q, t, -1.12949538230896f);
  q = fmaf(q, t, 0.00017058993398677558f);
  const float large = 1.0f - exp_fused(q);
  const float signed_large = float_of(bits_of(large) | (bits_of(x) & 0x80000000u));
  return a < 0.95f ? small : signed_large;
}

}  // namespace dsk
