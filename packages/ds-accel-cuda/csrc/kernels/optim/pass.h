// One pass of an elementwise optimizer over flat tensors, in one launch: read, update in float32, round, copy out.
#pragma once

#include "optim/elements.h"

namespace dsk {

// The tensors of one call. State `i` draws its random bits from stream `i + 1`, the param from stream 0.
template <int kStates>
struct Pass {
  static constexpr int kSlots = kStates > 0 ? kStates : 1;
  int64_t numel;
  Floats param;
  Floats grad;
  Floats states[kSlots];
  Floats copy_out;  // DS_NONE: there is none
  const float* grad_factor;
  Rounding param_rounding;
  Rounding state_rounding[kSlots];
  bool by_four;

  bool dtypes_served() const {
    bool served = is_float(param.dtype) && is_float(grad.dtype);
    for (int i = 0; i < kStates; ++i) served = served && is_float(states[i].dtype);
    return served && (copy_out.dtype == DS_NONE || is_float(copy_out.dtype));
  }
};

// What every argument struct of an optimizer has.
template <int kStates, typename Args>
Pass<kStates> make_pass(const Args& a, const void* const (&states)[Pass<kStates>::kSlots], int32_t state_dtype) {
  Pass<kStates> pass = {};
  pass.numel = a.numel;
  pass.param = floats_of(a.param, a.param_dtype);
  pass.grad = floats_of(a.grad, a.grad_dtype);
  pass.copy_out = floats_of(a.copy_out, a.copy_dtype);
  pass.grad_factor = a.grad_factor;
  pass.param_rounding = make_rounding(a.rounding_seed, a.rounding_offset, 0);
  pass.by_four = aligned4(pass.param) && aligned4(pass.grad) && aligned4(pass.copy_out);
  for (int i = 0; i < kStates; ++i) {
    pass.states[i] = floats_of(states[i], state_dtype);
    pass.state_rounding[i] = make_rounding(a.rounding_seed, a.rounding_offset, static_cast<uint64_t>(i) + 1);
    pass.by_four = pass.by_four && aligned4(pass.states[i]);
  }
  return pass;
}

template <int kStates, typename Update>
DSK_DEVICE void pass_one(const Pass<kStates>& pass, const Update& update, float factor, int64_t i) {
  float states[Pass<kStates>::kSlots] = {};
  float p = load(pass.param, i);
  for (int s = 0; s < kStates; ++s) states[s] = load(pass.states[s], i);
  update(p, load(pass.grad, i) * factor, states);
  p = store(pass.param, i, p, pass.param_rounding);
  for (int s = 0; s < kStates; ++s) store(pass.states[s], i, states[s], pass.state_rounding[s]);
  if (pass.copy_out.dtype != DS_NONE) store(pass.copy_out, i, p, Rounding{});
}

template <int kStates, typename Update>
DSK_DEVICE void pass_four(const Pass<kStates>& pass, const Update& update, float factor, int64_t i) {
  constexpr int kSlots = Pass<kStates>::kSlots;
  float p[4];
  float g[4];
  float states[kSlots][4] = {};
  load4(pass.param, i, p);
  load4(pass.grad, i, g);
  for (int s = 0; s < kStates; ++s) load4(pass.states[s], i, states[s]);
  for (int k = 0; k < 4; ++k) {
    float own[kSlots];
    for (int s = 0; s < kSlots; ++s) own[s] = states[s][k];
    update(p[k], g[k] * factor, own);
    for (int s = 0; s < kSlots; ++s) states[s][k] = own[s];
  }
  store4(pass.param, i, p, pass.param_rounding);
  for (int s = 0; s < kStates; ++s) store4(pass.states[s], i, states[s], pass.state_rounding[s]);
  if (pass.copy_out.dtype != DS_NONE) store4(pass.copy_out, i, p, Rounding{});
}

template <int kStates, typename Update>
__global__ void __launch_bounds__(kThreads) pass_kernel(const Pass<kStates> pass, const Update update) {
  const float factor = factor_of(pass.grad_factor);
  const int64_t fours = pass.by_four ? pass.numel / 4 : 0;
  DSK_GRID_STRIDE(four, fours) { pass_four(pass, update, factor, 4 * four); }
  const int64_t rest = pass.numel - 4 * fours;
  DSK_GRID_STRIDE(i, rest) { pass_one(pass, update, factor, 4 * fours + i); }
}

// Runs update(param, unscaled gradient, states) on every element: float32, param and states changed in place.
template <int kStates, typename Update>
int32_t run_pass(const Pass<kStates>& pass, const ds_exec* exec, const Update& update) {
  if (!pass.dtypes_served()) return DS_UNSUPPORTED_DTYPE;
  const int64_t items = pass.by_four ? ceil_div(pass.numel, 4) : pass.numel;
  return launch(exec, Shape(blocks_for(items, kThreads), kThreads), pass_kernel<kStates, Update>, pass, update);
}

}  // namespace dsk
