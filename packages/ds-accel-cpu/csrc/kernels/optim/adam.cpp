// adam_: unscale, weight decay, both moments, the update and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Scalars {
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

// One block in float32, in place; the order of operations is the one ds_kernel.h states.
template <bool kSmallWeight, bool kAdamW>
void update(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg,
            float* __restrict exp_avg_sq, int64_t n, const Scalars s) {
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

using Update = void (*)(float*, const float*, float*, float*, int64_t, Scalars);

Update choose_update(const ds_adam_args& a) {
  const bool small = a.lerp_weight < 0.5f && a.lerp_weight > -0.5f;
  if (small) return a.adamw ? update<true, true> : update<true, false>;
  return a.adamw ? update<false, true> : update<false, false>;
}

}  // namespace

int32_t adam(const void* arguments, const ds_exec* exec) {
  const ds_adam_args* a = static_cast<const ds_adam_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  Pass<2> pass = make_pass<2>(*a, a->state_dtype);
  pass.states[0] = a->exp_avg;
  pass.states[1] = a->exp_avg_sq;
  const Scalars s = {
      factor_of(a->grad_factor), a->lerp_weight,       a->beta2, a->square_weight, a->decay, a->weight_decay, a->eps,
      a->correction2_sqrt,       a->negative_step_size};
  const Update chosen = choose_update(*a);
  return run_pass(pass, exec, [&](float* p, const float* g, float* const* state, int64_t n) {
    chosen(p, g, state[0], state[1], n, s);
  });
}

}  // namespace dsk
