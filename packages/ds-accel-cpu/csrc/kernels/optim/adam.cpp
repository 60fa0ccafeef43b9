// adam_: unscale, weight decay, both moments, the update and the low-precision copy in one pass over memory.
#include "optim/adam_update.h"
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {

int32_t adam(const void* arguments, const ds_exec* exec) {
  const ds_adam_args* a = static_cast<const ds_adam_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  Pass<2> pass = make_pass<2>(*a, a->state_dtype);
  pass.states[0] = a->exp_avg;
  pass.states[1] = a->exp_avg_sq;
  const AdamScalars s = adam_scalars(*a);
  const AdamUpdate chosen = choose_adam_update(a->lerp_weight, a->adamw != 0);
  return run_pass(pass, exec, [&](float* p, const float* g, float* const* state, int64_t n) {
    chosen(p, g, state[0], state[1], n, s);
  });
}

}  // namespace dsk
