// rms_norm, layer_norm and their sums with a residual.
#include "rows.h"

namespace dsk {
namespace {

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) && is_float(a->weight_dtype) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

// The split of rows into tasks whose sums are added in order; it depends on the shape alone.
struct Tasks {
  int64_t rows_each;
  int64_t count;
};

template <typename Arguments>
Tasks tasks_of(const Arguments& a) {
  constexpr int64_t kMostTasks = 64;
  constexpr int64_t kFewestRows = 16;
  const int64_t even = ceil_div(a.rows, kMostTasks);
  const int64_t each = even > kFewestRows ? even : kFewestRows;
  return {each, ceil_div(a.rows, each)};
}

template <typename Arguments>
uint64_t vector_bytes(const Arguments& a) {
  return static_cast<uint64_t>(tasks_of(a).count * a.columns) * sizeof(float);
}

}  // namespace

int32_t rms_norm_forward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_rms_norm_forward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::rms_norm_forward>(exec, a->rows, a->dtype, a->weight_dtype, a->eps, a->rows, a->columns, a->x,
                                           a->weight, a->y, a->rstd, a->residual, a->total);
}

uint64_t rms_norm_backward_workspace(const void* arguments) {
  return vector_bytes(*static_cast<const ds_rms_norm_backward_args*>(arguments));
}

int32_t rms_norm_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_rms_norm_backward_args*>(arguments);
  int32_t status = refusal(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < rms_norm_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const Tasks tasks = tasks_of(*a);
  auto* partial = static_cast<float*>(exec->workspace);
  status =
      launch<kernels::norm_by_column>(exec, groups_for(tasks.count * a->columns), a->dtype, a->rows, a->columns,
                                      tasks.count, tasks.rows_each, a->dy, a->x, nullptr, a->rstd, partial, nullptr);
  if (status != DS_OK) return status;
  status = launch<kernels::add_tasks>(exec, groups_for(a->columns), a->weight_dtype, a->columns, tasks.count, partial,
                                      a->dweight);
  if (status != DS_OK) return status;
  return launch<kernels::rms_norm_backward>(exec, a->rows, a->dtype, a->weight_dtype, a->rows, a->columns, a->dy, a->x,
                                            a->weight, a->rstd, a->dx, a->dtotal);
}

int32_t layer_norm_forward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_layer_norm_forward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::layer_norm_forward>(exec, a->rows, a->dtype, a->weight_dtype, a->eps, a->rows, a->columns,
                                             a->x, a->weight, a->bias, a->y, a->mean, a->rstd, a->residual, a->total);
}

uint64_t layer_norm_backward_workspace(const void* arguments) {
  return 2 * vector_bytes(*static_cast<const ds_layer_norm_backward_args*>(arguments));
}

int32_t layer_norm_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_layer_norm_backward_args*>(arguments);
  int32_t status = refusal(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < layer_norm_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const Tasks tasks = tasks_of(*a);
  auto* weights = static_cast<float*>(exec->workspace);
  float* biases = weights + tasks.count * a->columns;
  status = launch<kernels::norm_by_column>(exec, groups_for(tasks.count * a->columns), a->dtype, a->rows, a->columns,
                                           tasks.count, tasks.rows_each, a->dy, a->x, a->mean, a->rstd, weights,
                                           a->dbias != nullptr ? biases : nullptr);
  if (status != DS_OK) return status;
  status = launch<kernels::add_tasks>(exec, groups_for(a->columns), a->weight_dtype, a->columns, tasks.count, weights,
                                      a->dweight);
  if (status != DS_OK) return status;
  if (a->dbias != nullptr) {
    status = launch<kernels::add_tasks>(exec, groups_for(a->columns), a->weight_dtype, a->columns, tasks.count, biases,
                                        a->dbias);
    if (status != DS_OK) return status;
  }
  return launch<kernels::layer_norm_backward>(exec, a->rows, a->dtype, a->weight_dtype, a->rows, a->columns, a->dy,
                                              a->x, a->weight, a->mean, a->rstd, a->dx, a->dtotal);
}

}  // namespace dsk
