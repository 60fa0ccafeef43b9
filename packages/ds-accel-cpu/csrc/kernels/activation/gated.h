// The activations of gates and their derivatives, one struct a kind.
#pragma once

#include "elementary.h"

namespace dsk {

// Value and derivative of an activation at one point.
struct Point {
  float value;
  float slope;
};

struct Silu {
  static DSK_INLINE float value(float x) { return x / (1.0f + exp_of(-x)); }
  static DSK_INLINE Point point(float x) {
    const float s = 1.0f / (1.0f + exp_of(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
};

// x * Phi(x), Phi being the normal distribution. Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.
struct Gelu {
  static constexpr float kRootHalf = 0x1.6a09e6p-1f;        // sqrt(1 / 2)
  static constexpr float kInverseRootTau = 0x1.988454p-2f;  // 1 / sqrt(2 pi)
  static DSK_INLINE float distribution(float x) { return 0.5f * (1.0f + erf_of(x * kRootHalf)); }
  static DSK_INLINE float value(float x) { return x * distribution(x); }
  static DSK_INLINE Point point(float x) {
    const float phi = distribution(x);
    return {x * phi, phi + x * (exp_of(-0.5f * x * x) * kInverseRootTau)};
  }
};

// The approximation of the same paper: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
struct GeluTanh {
  static constexpr float kRoot = 0x1.988454p-1f;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static DSK_INLINE float value(float x) { return 0.5f * x * (1.0f + tanh_of(kRoot * (x + kCubic * (x * x * x)))); }
  static DSK_INLINE Point point(float x) {
    const float t = tanh_of(kRoot * (x + kCubic * (x * x * x)));
    const float left = 0.5f * (1.0f + t);
    const float inner = kRoot * (1.0f + 3.0f * kCubic * (x * x));
    return {x * left, left + 0.5f * x * ((1.0f - t * t) * inner)};
  }
};

struct Relu {
  static DSK_INLINE float value(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays
  static DSK_INLINE Point point(float x) { return {value(x), x > 0.0f ? 1.0f : 0.0f}; }
};

}  // namespace dsk
