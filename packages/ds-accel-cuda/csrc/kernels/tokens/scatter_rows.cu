// scatter_rows and its gradients: rows added where an index says, in the order of the sources.
#include "tokens/rows.h"
#include "tokens/sources.h"

namespace dsk {
namespace {

// A team an entry: dx and the dot product that is dweights.
template <typename T>
__global__ void __launch_bounds__(kThreads) differentiate(ds_scatter_rows_backward_args a, int width) {
  const Team team(width);
  const int64_t entries = a.batch * a.taken;
  const int64_t step = static_cast<int64_t>(width) * kVector;
  for (int64_t base = 0; base < entries; base += team.count()) {
    const int64_t entry = base + team.number();
    const int64_t index = entry < entries ? a.index[entry] : -1;
    const bool good = is_row(index, a.rows);
    float dot = 0.0f;
    if (good) {
      const float weight = float_at(a.weight_dtype, a.weights, entry);
      const T* dy = static_cast<const T*>(a.dy) + (entry / a.taken * a.rows + index) * a.columns;
      const T* x = static_cast<const T*>(a.x) + entry * a.columns;
      T* dx = static_cast<T*>(a.dx) + entry * a.columns;
      for (int64_t column = static_cast<int64_t>(team.rank()) * kVector; column < a.columns; column += step) {
        float gradient[kVector];
        float value[kVector];
        load8(dy + column, a.columns - column, gradient);
        load8(x + column, a.columns - column, value);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          dot += gradient[i] * value[i];
          gradient[i] = weight * gradient[i];
        }
        store8(dx + column, a.columns - column, gradient);
      }
    } else if (entry < entries && team.rank() == 0) {
      report_bad_index();
    }
    dot = team.sum(dot);
    if (good && team.rank() == 0) set_float(a.weight_dtype, a.dweights, entry, dot);
  }
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) && (a->weights == nullptr || is_float(a->weight_dtype)) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

}  // namespace

uint64_t scatter_rows_workspace(const void* arguments) {
  const ds_scatter_rows_args* a = static_cast<const ds_scatter_rows_args*>(arguments);
  return sources_bytes(a->batch * a->rows, a->batch * a->taken);
}

int32_t scatter_rows(const void* arguments, const ds_exec* exec) {
  const ds_scatter_rows_args* a = static_cast<const ds_scatter_rows_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (exec->workspace_bytes < scatter_rows_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  if (a->batch == 0 || (a->rows == 0 && a->taken == 0)) return DS_OK;
  Sources sources;
  const Index index = {a->index, a->batch, a->taken, a->rows, 1, false};
  const int32_t status = find_sources(index, exec->workspace, exec, &sources);
  if (status != DS_OK) return status;
  return add_sources({a->dtype, a->weight_dtype, a->batch * a->rows, a->columns, a->x, a->weights, a->y}, sources,
                     exec);
}

int32_t scatter_rows_backward(const void* arguments, const ds_exec* exec) {
  const ds_scatter_rows_backward_args* a = static_cast<const ds_scatter_rows_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  const int64_t entries = a->batch * a->taken;
  if (entries == 0) return DS_OK;
  if (a->weights == nullptr) return DS_BAD_ARGUMENT;
  const int width = team_width(a->columns);
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return launch(exec, team_shape(entries, width), differentiate<T>, *a, width);
  });
}

}  // namespace dsk
