// The activations of gates and their derivatives, one struct a kind.
#pragma once

#include "exponential.h"
#include "row.h"

namespace dsk {

// Value and derivative of an activation at one point.
struct Point {
  float value;
  float slope;
};

struct Silu {
  static DSK_DEVICE float value(float x) { return x / (1.0f + exp_fused(-x)); }
  static DSK_DEVICE Point point(float x) {
    const float s = 1.0f / (1.0f + exp_fused(-x));
    return {x * s, s * (1.0f + x * (1.0f - s))};
  }
};

// x * Phi(x), Phi being the normal distribution. Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.
struct Gelu {
  static constexpr float kRootHalf = 0x1.6a09e6p-1f;        // sqrt(1 / 2)
  static constexpr float kInverseRootTau = 0x1.988454p-2f;  // 1 / sqrt(2 pi)
  static DSK_DEVICE float distribution(float x) { return 0.5f * (1.0f + erf_fused(x * kRootHalf)); }
  static DSK_DEVICE float value(float x) { return x * distribution(x); }
  static DSK_DEVICE Point point(float x) {
    const float phi = distribution(x);
    return {x * phi, phi + x * (exp_fused(-0.5f * x * x) * kInverseRootTau)};
  }
};

// The approximation of the same paper, 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), as x / (1 +
// exp(-2 u)): one exponential, and nothing cancels.
struct GeluTanh {
  static constexpr float kRoot = 0x1.988454p-1f;  // sqrt(2 / pi)
  static constexpr float kCubic = 0.044715f;
  static DSK_DEVICE float decay(float x) { return exp_fused(-2.0f * (kRoot * (x + kCubic * (x * x * x)))); }
  static DSK_DEVICE float value(float x) { return x * (1.0f / (1.0f + decay(x))); }
  static DSK_DEVICE Point point(float x) {
    const float e = decay(x);
    const float s = 1.0f / (1.0f + e);
    const float rest = x > 0.0f ? e * s : 1.0f - s;  // 1 - s, of which the side near 0 needs all digits
    const float inner = kRoot * (1.0f + 3.0f * kCubic * (x * x));
    return {x * s, s + x * (2.0f * s * rest * inner)};
  }
};

struct Relu {
  static DSK_DEVICE float value(float x) { return x < 0.0f ? 0.0f : x; }  // NaN stays
  static DSK_DEVICE Point point(float x) { return {value(x), x > 0.0f ? 1.0f : 0.0f}; }
};

// Calls body(Type<Kind>{}) with the struct of a kind.
template <typename Body>
int32_t with_kind(int32_t kind, const Body& body) {
  switch (kind) {
    case DS_SILU:
      return body(Type<Silu>{});
    case DS_GELU:
      return body(Type<Gelu>{});
    case DS_GELU_TANH:
      return body(Type<GeluTanh>{});
    case DS_RELU:
      return body(Type<Relu>{});
    default:
      return DS_BAD_ARGUMENT;
  }
}

// Whether all rows of a tensor begin at a multiple of 16 bytes.
template <typename T>
bool rows_aligned(const void* base, int64_t rows, int64_t stride) {
  return all_aligned(16, base) && (rows < 2 || stride % RowPack<T>::kSize == 0);
}

}  // namespace dsk
