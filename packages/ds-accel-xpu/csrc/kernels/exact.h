// Division and square root of float32, rounded correctly on every device.
//
// OpenCL allows 2.5 and 3 units in the last place unless a build option asks for more, and not every way into a driver
// passes that option. So what the device says is taken for a guess: it is improved by its residual, which fma gives
// exactly, and then compared with the midpoint to its neighbour. csrc/checks/exact.cpp runs this very text on the host
// with guesses that are wrong on purpose.
// Source: P. Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", IBM Journal of
// Research and Development 34(1), 1990, for the residuals.
#ifndef DSK_XPU_EXACT_H
#define DSK_XPU_EXACT_H

#ifndef DSK_GUESS
#define DSK_GUESS(x) (x)
#endif

// The mantissa of a positive finite number in [1, 2), and its exponent.
static inline float mantissa_of(float x, int* exponent) {
  uint bits = as_uint(x);
  int scaled = 0;
  if (bits < 0x00800000u) {
    bits = as_uint((float)bits);  // a subnormal is its bits times 2^-149
    scaled = -149;
    *exponent = (int)(bits >> 23) - 127 + scaled;
  } else {
    *exponent = (int)(bits >> 23) - 127;
  }
  return as_float((bits & 0x007fffffu) | 0x3f800000u);
}

static inline float divide(float a, float b) {
  const uint sign = (as_uint(a) ^ as_uint(b)) & 0x80000000u;
  const uint top = as_uint(a) & 0x7fffffffu;
  const uint bottom = as_uint(b) & 0x7fffffffu;
  if (top > 0x7f800000u || bottom > 0x7f800000u || (top == bottom && (top == 0u || top == 0x7f800000u))) {
    return as_float(0x7fc00000u);
  }
  if (top == 0x7f800000u || bottom == 0u) return as_float(sign | 0x7f800000u);
  if (bottom == 0x7f800000u || top == 0u) return as_float(sign);
  int above;
  int below;
  const float m = mantissa_of(as_float(top), &above);
  const float d = mantissa_of(as_float(bottom), &below);
  float q = DSK_GUESS(m / d);  // in (1/2, 2)
  q = q + fma(-q, d, m) / d;
  float left = fma(-q, d, m);  // exact, for q is less than one unit off
  const float next = as_float(left > 0.0f ? as_uint(q) + 1u : as_uint(q) - 1u);
  if (left != 0.0f && 2.0f * fabs(left) > fabs(next - q) * d) {
    q = next;
    left = fma(-q, d, m);
  }
  int exponent = above - below + (int)(as_uint(q) >> 23) - 127;
  const uint mantissa = (as_uint(q) & 0x007fffffu) | 0x00800000u;
  if (exponent > 127) return as_float(sign | 0x7f800000u);
  if (exponent >= -126) return as_float(sign | (((uint)(exponent + 126) << 23) + mantissa));
  // Subnormal: rounded once, from the quotient and on which side of it the true one lies.
  const int shift = -126 - exponent + 2;
  if (shift > 27) return as_float(sign);
  const uint exact = (mantissa << 2) + (left > 0.0f ? 1u : left < 0.0f ? 0xffffffffu : 0u);
  const uint kept = exact >> shift;
  const uint rest = exact & ((1u << shift) - 1u);
  const uint half_way = 1u << (shift - 1);
  return as_float(sign | (kept + (rest > half_way || (rest == half_way && (kept & 1u) != 0u) ? 1u : 0u)));
}

static inline float root(float x) {
  const uint bits = as_uint(x);
  if (bits == 0u || bits == 0x80000000u || bits == 0x7f800000u) return x;
  if (bits > 0x7f800000u) return as_float(0x7fc00000u);  // negative, or NaN
  int exponent;
  float m = mantissa_of(x, &exponent);
  if ((exponent & 1) != 0) {
    m = 2.0f * m;
    exponent -= 1;
  }
  float s = DSK_GUESS(sqrt(m));  // in [1, 2)
  s = s + fma(-s, s, m) / (2.0f * s);
  const float left = fma(-s, s, m);
  const float reach = s * 0x1p-23f;  // what is left at the midpoint to a neighbour, but for half a unit squared
  if (left > reach) s = as_float(as_uint(s) + 1u);
  if (left <= -reach) s = as_float(as_uint(s) - 1u);
  return as_float(as_uint(s) + ((uint)(exponent / 2) << 23));
}

#endif
