// adam_: unscale, weight decay, both moments, the update and the low-precision copy in one pass over memory.
#include "optim/adam_update.h"
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {

int32_t adam(const void* arguments, const ds_exec* exec) {
  const ds_adam_args* a = static_cast<const ds_adam_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  return run_pass(make_pass<2>(*a, {a->exp_avg, a->exp_avg_sq}, a->state_dtype), exec, adam_update(*a));
}

}  // namespace dsk
