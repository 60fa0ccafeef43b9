// rms_norm_backward and add_rms_norm_backward.
#include "norm/backward.h"
#include "norm/rows.h"

namespace dsk {

uint64_t rms_norm_backward_workspace(const void* arguments) {
  const ds_rms_norm_backward_args* a = static_cast<const ds_rms_norm_backward_args*>(arguments);
  return norm_backward_workspace<false>(a->rows, a->columns, a->dtype);
}

int32_t rms_norm_backward(const void* arguments, const ds_exec* exec) {
  const ds_rms_norm_backward_args* a = static_cast<const ds_rms_norm_backward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < rms_norm_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const NormBackward call = {a->weight_dtype, a->rows, a->columns, a->dy,   a->x,      a->weight, nullptr,
                             a->rstd,         a->dx,   a->dweight, nullptr, a->dtotal, false};
  return norm_backward<false>(call, a->dtype, exec);
}

}  // namespace dsk
