// lion_: unscale, weight decay, the sign update, the moment and the low-precision copy in one pass over memory.
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

struct Update {
  float decay;
  float beta1;
  float weight1;
  float beta2;
  float weight2;
  float negative_lr;

  DSK_DEVICE void operator()(float& param, float g, float* states) const {
    const float m = states[0];
    const float c = fmaf(g, weight1, m * beta1);
    const float sign = (c > 0.0f ? 1.0f : 0.0f) - (c < 0.0f ? 1.0f : 0.0f);
    param = fmaf(sign, negative_lr, param * decay);
    states[0] = fmaf(g, weight2, m * beta2);
  }
};

}  // namespace

int32_t lion(const void* arguments, const ds_exec* exec) {
  const ds_lion_args* a = static_cast<const ds_lion_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  const Update update = {a->decay, a->beta1, a->weight1, a->beta2, a->weight2, a->negative_lr};
  return run_pass(make_pass<1>(*a, {a->exp_avg}, a->state_dtype), exec, update);
}

}  // namespace dsk
