// sgd_: unscale, weight decay, momentum, the update and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Scalars {
  float factor;
  float weight_decay;
  float momentum;
  float grad_weight;
  float negative_lr;
};

enum Mode { kPlain, kFirst, kRunning };  // no momentum; its first step, which takes the gradient; a later one

template <bool kDecays, Mode kMode, bool kNesterov>
void update(float* __restrict param, const float* __restrict grad, float* __restrict buffer, int64_t n,
            const Scalars s) {
  for (int64_t i = 0; i < n; ++i) {
    const float p = param[i];
    float g = grad[i] * s.factor;
    if (kDecays) g = fma(p, s.weight_decay, g);
    if (kMode != kPlain) {
      const float b = kMode == kFirst ? g : fma(g, s.grad_weight, buffer[i] * s.momentum);
      buffer[i] = b;
      g = kNesterov ? fma(b, s.momentum, g) : b;
    }
    param[i] = fma(g, s.negative_lr, p);
  }
}

using Update = void (*)(float*, const float*, float*, int64_t, Scalars);

template <bool kDecays>
Update choose_update(const ds_sgd_args& a) {
  if (a.momentum_buffer == nullptr) return update<kDecays, kPlain, false>;
  if (a.is_first) return a.nesterov ? update<kDecays, kFirst, true> : update<kDecays, kFirst, false>;
  return a.nesterov ? update<kDecays, kRunning, true> : update<kDecays, kRunning, false>;
}

}  // namespace

int32_t sgd(const void* arguments, const ds_exec* exec) {
  const ds_sgd_args* a = static_cast<const ds_sgd_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  const Scalars s = {factor_of(a->grad_factor), a->weight_decay, a->momentum, a->grad_weight, a->negative_lr};
  const Update chosen = a->weight_decay != 0.0f ? choose_update<true>(*a) : choose_update<false>(*a);
  const auto call = [&](float* p, const float* g, float* const* state, int64_t n) { chosen(p, g, state[0], n, s); };
  if (a->momentum_buffer == nullptr) return run_pass(make_pass<0>(*a, DS_NONE), exec, call);
  Pass<1> pass = make_pass<1>(*a, a->state_dtype);
  pass.states[0] = a->momentum_buffer;
  return run_pass(pass, exec, call);
}

}  // namespace dsk
