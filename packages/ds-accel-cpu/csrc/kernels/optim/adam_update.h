// The arithmetic of Adam on one block of float32; the order of operations is the one ds_kernel.h states.
#pragma once

#include "fused.h"

namespace dsk {

struct AdamScalars {
  float factor;
  float lerp_weight;
  float beta2;
  float square_weight;
  float decay;
  float weight_decay;
  float eps;
  float correction2_sqrt;
  float negative_step_size;
};

template <typename Args>
AdamScalars adam_scalars(const Args& a) {
  return {a.grad_factor != nullptr ? *a.grad_factor : 1.0f,
          a.lerp_weight,
          a.beta2,
          a.square_weight,
          a.decay,
          a.weight_decay,
          a.eps,
          a.correction2_sqrt,
          a.negative_step_size};
}

// In place.
template <bool kSmallWeight, bool kAdamW>
void adam_update(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg,
                 float* __restrict exp_avg_sq, int64_t n, const AdamScalars s) {
  const float lerp_weight = kSmallWeight ? s.lerp_weight : s.lerp_weight - 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    float p = param[i];
    float g = grad[i] * s.factor;
    if (kAdamW) {
      p = p * s.decay;
    } else {
      g = fma(p, s.weight_decay, g);
    }
    float m = exp_avg[i];
    m = fma(lerp_weight, g - m, kSmallWeight ? m : g);
    const float v = fma(s.square_weight * g, g, exp_avg_sq[i] * s.beta2);
    const float denominator = __builtin_sqrtf(v) / s.correction2_sqrt + s.eps;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p + (s.negative_step_size * m) / denominator;
  }
}

using AdamUpdate = void (*)(float*, const float*, float*, float*, int64_t, AdamScalars);

inline AdamUpdate choose_adam_update(float lerp_weight, bool adamw) {
  const bool small = lerp_weight < 0.5f && lerp_weight > -0.5f;
  if (small) return adamw ? adam_update<true, true> : adam_update<true, false>;
  return adamw ? adam_update<false, true> : adam_update<false, false>;
}

}  // namespace dsk
