// sgd_: unscale, weight decay, momentum, the update and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Update {
  float weight_decay;
  float momentum;
  float grad_weight;
  float negative_lr;
  bool has_momentum;
  bool is_first;  // the buffer is written, not read
  bool nesterov;

  DSK_DEVICE void operator()(float& param, float g, float* states) const {
    if (weight_decay != 0.0f) g = fmaf(param, weight_decay, g);
    if (has_momentum) {
      const float b = is_first ? g : fmaf(g, grad_weight, states[0] * momentum);
      states[0] = b;
      g = nesterov ? fmaf(b, momentum, g) : b;
    }
    param = fmaf(g, negative_lr, param);
  }
};

}  // namespace

int32_t sgd(const void* arguments, const ds_exec* exec) {
  const ds_sgd_args* a = static_cast<const ds_sgd_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  const bool has_momentum = a->momentum_buffer != nullptr;
  const Update update = {a->weight_decay, a->momentum,      a->grad_weight,  a->negative_lr,
                         has_momentum,    a->is_first != 0, a->nesterov != 0};
  if (!has_momentum) return run_pass(make_pass<0>(*a, {nullptr}, DS_NONE), exec, update);
  return run_pass(make_pass<1>(*a, {a->momentum_buffer}, a->state_dtype), exec, update);
}

}  // namespace dsk
