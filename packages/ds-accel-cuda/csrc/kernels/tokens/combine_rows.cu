// combine_rows and its gradients: each token the weighted sum of a few rows.
#include "tokens/rows.h"
#include "tokens/sources.h"

namespace dsk {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads) combine(ds_combine_rows_args a, int lanes) {
  const T* x = static_cast<const T*>(a.x);
  T* y = static_cast<T*>(a.y);
  const int64_t eights = ceil_div(a.columns, kVector);
  for_my_rows(a.tokens, lanes, [&](int64_t token, int64_t first, int64_t step) {
    const int64_t* index = a.index + token * a.slots;
    bool good = true;
    for (int64_t k = 0; k < a.slots; ++k) good &= index[k] == -1 || is_row(index[k], a.rows);
    if (!good) {
      if (first == 0) report_bad_index();
      return;
    }
    for (int64_t eight = first; eight < eights; eight += step) {
      const int64_t column = eight * kVector;
      float sum[kVector] = {};
      for (int64_t k = 0; k < a.slots; ++k) {
        if (index[k] < 0) continue;
        const float weight = float_at(a.weight_dtype, a.weights, token * a.slots + k);
        float values[kVector];
        load8(x + index[k] * a.columns + column, a.columns - column, values);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] += weight * values[j];
      }
      store8(y + token * a.columns + column, a.columns - column, sum);
    }
  });
}

// A team an entry: dweights. Indices have been looked at where the sources are found.
template <typename T>
__global__ void __launch_bounds__(kThreads) weight_gradients(ds_combine_rows_backward_args a, int width) {
  const Team team(width);
  const int64_t entries = a.tokens * a.slots;
  const int64_t step = static_cast<int64_t>(width) * kVector;
  for (int64_t base = 0; base < entries; base += team.count()) {
    const int64_t entry = base + team.number();
    const int64_t index = entry < entries ? a.index[entry] : -1;
    float dot = 0.0f;
    if (is_row(index, a.rows)) {
      const T* dy = static_cast<const T*>(a.dy) + entry / a.slots * a.columns;
      const T* x = static_cast<const T*>(a.x) + index * a.columns;
      for (int64_t column = static_cast<int64_t>(team.rank()) * kVector; column < a.columns; column += step) {
        float gradient[kVector];
        float value[kVector];
        load8(dy + column, a.columns - column, gradient);
        load8(x + column, a.columns - column, value);
#pragma unroll
        for (int i = 0; i < kVector; ++i) dot += gradient[i] * value[i];
      }
    }
    dot = team.sum(dot);
    const bool named = entry < entries && (index == -1 || is_row(index, a.rows));
    if (named && team.rank() == 0) set_float(a.weight_dtype, a.dweights, entry, dot);
  }
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->tokens < 0 || a->slots < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) && is_float(a->weight_dtype) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

}  // namespace

int32_t combine_rows(const void* arguments, const ds_exec* exec) {
  const ds_combine_rows_args* a = static_cast<const ds_combine_rows_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (a->tokens == 0) return DS_OK;
  const RowGrid grid = row_grid(a->tokens, ceil_div(a->columns, kVector));
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return launch(exec, grid.shape, combine<T>, *a, grid.lanes);
  });
}

uint64_t combine_rows_backward_workspace(const void* arguments) {
  const ds_combine_rows_backward_args* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  return sources_bytes(a->rows, a->tokens * a->slots);
}

int32_t combine_rows_backward(const void* arguments, const ds_exec* exec) {
  const ds_combine_rows_backward_args* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (exec->workspace_bytes < combine_rows_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const int64_t entries = a->tokens * a->slots;
  if (a->rows == 0 && entries == 0) return DS_OK;
  Sources sources;
  const Index index = {a->index, 1, entries, a->rows, max64(a->slots, 1), true};
  const int32_t status = find_sources(index, exec->workspace, exec, &sources);
  if (status != DS_OK) return status;
  if (entries > 0) {
    const int width = team_width(a->columns);
    const int32_t launched = with_float_type(a->dtype, [&](auto tag) -> int32_t {
      using T = typename decltype(tag)::type;
      return launch(exec, team_shape(entries, width), weight_gradients<T>, *a, width);
    });
    if (launched != DS_OK) return launched;
  }
  return add_sources({a->dtype, a->weight_dtype, a->rows, a->columns, a->dy, a->weights, a->dx}, sources, exec);
}

}  // namespace dsk
