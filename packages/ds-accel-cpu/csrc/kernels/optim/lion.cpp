// lion_: unscale, weight decay, the sign update, the moment and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Scalars {
  float factor;
  float decay;
  float beta1;
  float weight1;
  float beta2;
  float weight2;
  float negative_lr;
};

void update(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg, int64_t n,
            const Scalars s) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * s.factor;
    const float m = exp_avg[i];
    const float c = fma(g, s.weight1, m * s.beta1);
    const float sign = (c > 0.0f ? 1.0f : 0.0f) - (c < 0.0f ? 1.0f : 0.0f);
    param[i] = fma(sign, s.negative_lr, param[i] * s.decay);
    exp_avg[i] = fma(g, s.weight2, m * s.beta2);
  }
}

}  // namespace

int32_t lion(const void* arguments, const ds_exec* exec) {
  const ds_lion_args* a = static_cast<const ds_lion_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  Pass<1> pass = make_pass<1>(*a, a->state_dtype);
  pass.states[0] = a->exp_avg;
  const Scalars s = {factor_of(a->grad_factor), a->decay, a->beta1, a->weight1, a->beta2, a->weight2, a->negative_lr};
  return run_pass(pass, exec,
                  [&](float* p, const float* g, float* const* state, int64_t n) { update(p, g, state[0], n, s); });
}

}  // namespace dsk
