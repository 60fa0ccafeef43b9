// scatter_rows and its gradients: rows added where an index says, in the order of the sources.
#include "lanes.h"
#include "row_split.h"
#include "tokens/rows.h"
#include "tokens/sources.h"

namespace dsk {
namespace {

void sum_row(const ds_scatter_rows_args& a, const Sources& sources, int64_t row) {
  alignas(64) float sum[kBlock];
  alignas(64) float buffer[kBlock];
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0.0f;
    for (const int64_t* entry = sources.begin(row); entry != sources.end(row); ++entry) {
      const float* __restrict x = read_block(a.dtype, a.x, *entry * a.columns + column, n, buffer);
      const float weight = a.weights != nullptr ? float_at(a.weight_dtype, a.weights, *entry) : 1.0f;
      for (int64_t i = 0; i < n; ++i) sum[i] += weight * x[i];
    }
    store_block(a.dtype, sum, at(a.y, row * a.columns + column, element_bytes(a.dtype)), n);
  });
}

void backward_entry(const ds_scatter_rows_backward_args& a, int64_t entry) {
  alignas(64) float dy_buffer[kBlock];
  alignas(64) float x_buffer[kBlock];
  alignas(64) float dx[kBlock];
  const int64_t row = entry / a.taken * a.rows + a.index[entry];
  const float weight = float_at(a.weight_dtype, a.weights, entry);
  FloatLanes products;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const float* __restrict dy = read_block(a.dtype, a.dy, row * a.columns + column, n, dy_buffer);
    const float* __restrict x = read_block(a.dtype, a.x, entry * a.columns + column, n, x_buffer);
    products.add(n, [=](int64_t i) { return dy[i] * x[i]; });
    for (int64_t i = 0; i < n; ++i) dx[i] = weight * dy[i];
    store_block(a.dtype, dx, at(a.dx, entry * a.columns + column, element_bytes(a.dtype)), n);
  });
  set_float(a.weight_dtype, a.dweights, entry, products.fold());
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || (a->weights != nullptr && !is_float(a->weight_dtype))) return DS_UNSUPPORTED_DTYPE;
  return all_rows_exist(a->index, a->batch * a->taken, a->rows) ? DS_OK : DS_INDEX_OUT_OF_RANGE;
}

}  // namespace

uint64_t scatter_rows_workspace(const void* arguments) {
  const ds_scatter_rows_args* a = static_cast<const ds_scatter_rows_args*>(arguments);
  return Sources::bytes(a->batch * a->rows, a->batch * a->taken);
}

int32_t scatter_rows(const void* arguments, const ds_exec* exec) {
  const ds_scatter_rows_args* a = static_cast<const ds_scatter_rows_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (exec->workspace_bytes < scatter_rows_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const Sources sources(exec->workspace, a->index, a->batch, a->taken, a->rows);
  for_rows(exec, a->batch * a->rows, a->columns, [a, &sources](int64_t row) { sum_row(*a, sources, row); });
  return DS_OK;
}

int32_t scatter_rows_backward(const void* arguments, const ds_exec* exec) {
  const ds_scatter_rows_backward_args* a = static_cast<const ds_scatter_rows_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  for_rows(exec, a->batch * a->taken, a->columns, [a](int64_t entry) { backward_entry(*a, entry); });
  return DS_OK;
}

}  // namespace dsk
