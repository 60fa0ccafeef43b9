// adagrad_: unscale, weight decay, the sum of squares, the update and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Update {
  float weight_decay;
  float eps;
  float negative_step_size;

  DSK_DEVICE void operator()(float& param, float g, float* states) const {
    if (weight_decay != 0.0f) g = fmaf(param, weight_decay, g);
    const float sum = fmaf(g, g, states[0]);
    states[0] = sum;
    param = param + (negative_step_size * g) / (sqrtf(sum) + eps);
  }
};

}  // namespace

int32_t adagrad(const void* arguments, const ds_exec* exec) {
  const ds_adagrad_args* a = static_cast<const ds_adagrad_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  const Update update = {a->weight_decay, a->eps, a->negative_step_size};
  return run_pass(make_pass<1>(*a, {a->state_sum}, a->state_dtype), exec, update);
}

}  // namespace dsk
