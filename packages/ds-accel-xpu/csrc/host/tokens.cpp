// Rows moved by index.
#include "indices.h"
#include "rows.h"

namespace dsk {
namespace {

template <typename Arguments>
int32_t batch_refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  return a->batch < 0 || a->rows < 0 || a->taken < 0 ? DS_BAD_ARGUMENT : DS_OK;
}

template <typename Arguments>
int32_t combine_refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->tokens < 0 || a->slots < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  return check_indices(exec, a->index, a->tokens * a->slots, a->rows, -1);
}

// Workspace of invert_index: starts, ranks and entries.
struct Sources {
  int64_t* starts;
  int64_t* ranks;
  int64_t* entries;

  Sources(void* workspace, int64_t runs, int64_t length, int64_t rows)
      : starts(static_cast<int64_t*>(workspace)), ranks(starts + runs * rows + runs), entries(ranks + runs * length) {}

  static uint64_t bytes(int64_t runs, int64_t length, int64_t rows) {
    const int64_t count = runs * rows + runs + 2 * runs * length;
    return count > 0 ? static_cast<uint64_t>(count) * sizeof(int64_t) : 0;
  }
};

}  // namespace

int32_t gather_rows(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_gather_rows_args*>(arguments);
  int32_t status = batch_refusal(a, exec);
  if (status != DS_OK || a->row_bytes < 0) return status != DS_OK ? status : DS_BAD_ARGUMENT;
  status = check_indices(exec, a->index, a->batch * a->taken, a->rows, kNoOther);
  if (status != DS_OK || a->row_bytes == 0) return status;
  return launch<kernels::gather_rows>(exec, a->batch * a->taken, a->batch, a->rows, a->taken, a->row_bytes, a->x,
                                      a->index, a->y);
}

int32_t replace_rows(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_replace_rows_args*>(arguments);
  int32_t status = batch_refusal(a, exec);
  if (status != DS_OK || a->row_bytes < 0) return status != DS_OK ? status : DS_BAD_ARGUMENT;
  status = check_indices(exec, a->index, a->batch * a->taken, a->rows, kNoOther, a->taken);
  if (status != DS_OK || a->row_bytes == 0) return status;
  return launch<kernels::replace_rows>(exec, a->batch * a->rows, a->batch, a->rows, a->taken, a->row_bytes, a->base,
                                       a->x, a->index, a->y);
}

uint64_t scatter_rows_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_scatter_rows_args*>(arguments);
  return Sources::bytes(a->batch, a->taken, a->rows);
}

int32_t scatter_rows(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_scatter_rows_args*>(arguments);
  int32_t status = batch_refusal(a, exec);
  if (status != DS_OK || a->columns < 0) return status != DS_OK ? status : DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || (a->weights != nullptr && !is_float(a->weight_dtype))) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < scatter_rows_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  status = check_indices(exec, a->index, a->batch * a->taken, a->rows, kNoOther);
  if (status != DS_OK || a->rows == 0) return status;
  const Sources sources(exec->workspace, a->batch, a->taken, a->rows);
  status = launch<kernels::invert_index>(exec, a->batch, a->batch, a->taken, a->rows, a->index, sources.starts,
                                         sources.ranks, sources.entries);
  if (status != DS_OK) return status;
  return launch<kernels::sum_sources>(exec, a->batch * a->rows, a->dtype, a->weight_dtype, a->batch, a->rows,
                                      int64_t{1}, a->columns, a->x, sources.starts, sources.entries, a->weights, a->y);
}

int32_t scatter_rows_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_scatter_rows_backward_args*>(arguments);
  int32_t status = batch_refusal(a, exec);
  if (status != DS_OK || a->columns < 0) return status != DS_OK ? status : DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  status = check_indices(exec, a->index, a->batch * a->taken, a->rows, kNoOther);
  if (status != DS_OK) return status;
  return launch<kernels::scatter_rows_backward>(exec, a->batch * a->taken, a->dtype, a->weight_dtype, a->batch, a->rows,
                                                a->taken, a->columns, a->dy, a->x, a->index, a->weights, a->dx,
                                                a->dweights);
}

int32_t combine_rows(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_combine_rows_args*>(arguments);
  const int32_t refused = combine_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::combine_rows>(exec, a->tokens, a->dtype, a->weight_dtype, a->rows, a->tokens, a->slots,
                                       a->columns, a->x, a->index, a->weights, a->y);
}

uint64_t combine_rows_backward_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  return Sources::bytes(1, a->tokens * a->slots, a->rows);
}

int32_t combine_rows_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  int32_t status = combine_refusal(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < combine_rows_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const int64_t count = a->tokens * a->slots;
  status = launch<kernels::combine_rows_weights>(exec, count, a->dtype, a->weight_dtype, a->rows, count, a->slots,
                                                 a->columns, a->dy, a->x, a->index, a->dweights);
  if (status != DS_OK || a->rows == 0) return status;
  const Sources sources(exec->workspace, 1, count, a->rows);
  status = launch<kernels::invert_index>(exec, 1, int64_t{1}, count, a->rows, a->index, sources.starts, sources.ranks,
                                         sources.entries);
  if (status != DS_OK) return status;
  return launch<kernels::sum_sources>(exec, a->rows, a->dtype, a->weight_dtype, int64_t{1}, a->rows, a->slots,
                                      a->columns, a->dy, sources.starts, sources.entries, a->weights, a->dx);
}

}  // namespace dsk
