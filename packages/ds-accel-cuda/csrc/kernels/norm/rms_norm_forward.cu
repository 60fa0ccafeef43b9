// rms_norm_forward and add_rms_norm_forward.
#include "norm/forward.h"
#include "norm/rows.h"

namespace dsk {

int32_t rms_norm_forward(const void* arguments, const ds_exec* exec) {
  const ds_rms_norm_forward_args* a = static_cast<const ds_rms_norm_forward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  const NormForward call = {a->weight_dtype, a->eps,  a->rows,     a->columns, a->x, a->weight, nullptr, a->y,
                            nullptr,         a->rstd, a->residual, a->total,   false};
  return norm_forward<false>(call, a->dtype, exec);
}

}  // namespace dsk
