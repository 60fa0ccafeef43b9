// The arithmetic of Adam on one element; the order of operations is the one ds_kernel.h states.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

struct AdamUpdate {
  float lerp_weight;
  float beta2;
  float square_weight;
  float decay;
  float weight_decay;
  float eps;
  float correction2_sqrt;
  float negative_step_size;
  bool adamw;
  bool small_weight;

  // In place; `g` is unscaled. `states`: the first and the second moment.
  DSK_DEVICE void operator()(float& param, float g, float* states) const {
    float p = param;
    if (adamw) {
      p = p * decay;
    } else {
      g = fmaf(p, weight_decay, g);
    }
    float m = states[0];
    m = small_weight ? fmaf(lerp_weight, g - m, m) : fmaf(lerp_weight - 1.0f, g - m, g);
    const float v = fmaf(square_weight * g, g, states[1] * beta2);
    const float denominator = sqrtf(v) / correction2_sqrt + eps;
    states[0] = m;
    states[1] = v;
    param = p + (negative_step_size * m) / denominator;
  }
};

template <typename Args>
AdamUpdate adam_update(const Args& a) {
  return {a.lerp_weight,      a.beta2,
          a.square_weight,    a.decay,
          a.weight_decay,     a.eps,
          a.correction2_sqrt, a.negative_step_size,
          a.adamw != 0,       fabsf(a.lerp_weight) < 0.5f};
}

}  // namespace dsk
