// adagrad_: unscale, weight decay, the sum of squares, the update and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Scalars {
  float factor;
  float weight_decay;
  float eps;
  float negative_step_size;
};

template <bool kDecays>
void update(float* __restrict param, const float* __restrict grad, float* __restrict state_sum, int64_t n,
            const Scalars s) {
  for (int64_t i = 0; i < n; ++i) {
    const float p = param[i];
    float g = grad[i] * s.factor;
    if (kDecays) g = fma(p, s.weight_decay, g);
    const float sum = fma(g, g, state_sum[i]);
    state_sum[i] = sum;
    param[i] = p + (s.negative_step_size * g) / (__builtin_sqrtf(sum) + s.eps);
  }
}

}  // namespace

int32_t adagrad(const void* arguments, const ds_exec* exec) {
  const ds_adagrad_args* a = static_cast<const ds_adagrad_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  Pass<1> pass = make_pass<1>(*a, a->state_dtype);
  pass.states[0] = a->state_sum;
  const Scalars s = {factor_of(a->grad_factor), a->weight_decay, a->eps, a->negative_step_size};
  const auto chosen = a->weight_decay != 0.0f ? update<true> : update<false>;
  return run_pass(pass, exec,
                  [&](float* p, const float* g, float* const* state, int64_t n) { chosen(p, g, state[0], n, s); });
}

}  // namespace dsk
