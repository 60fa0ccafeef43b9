// combine_rows and its gradients: each token the weighted sum of a few rows.
#include "lanes.h"
#include "row_split.h"
#include "tokens/rows.h"
#include "tokens/sources.h"

namespace dsk {
namespace {

void combine_token(const ds_combine_rows_args& a, int64_t token) {
  alignas(64) float sum[kBlock];
  alignas(64) float buffer[kBlock];
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0.0f;
    for (int64_t entry = token * a.slots; entry < (token + 1) * a.slots; ++entry) {
      if (a.index[entry] < 0) continue;
      const float* __restrict x = read_block(a.dtype, a.x, a.index[entry] * a.columns + column, n, buffer);
      const float weight = float_at(a.weight_dtype, a.weights, entry);
      for (int64_t i = 0; i < n; ++i) sum[i] += weight * x[i];
    }
    store_block(a.dtype, sum, at(a.y, token * a.columns + column, element_bytes(a.dtype)), n);
  });
}

void weight_gradient(const ds_combine_rows_backward_args& a, int64_t entry) {
  alignas(64) float dy_buffer[kBlock];
  alignas(64) float x_buffer[kBlock];
  FloatLanes products;
  if (a.index[entry] >= 0) {
    for_blocks(a.columns, [&](int64_t column, int64_t n) {
      const float* dy = read_block(a.dtype, a.dy, entry / a.slots * a.columns + column, n, dy_buffer);
      const float* x = read_block(a.dtype, a.x, a.index[entry] * a.columns + column, n, x_buffer);
      products.add(n, [=](int64_t i) { return dy[i] * x[i]; });
    });
  }
  set_float(a.weight_dtype, a.dweights, entry, products.fold());
}

void row_gradient(const ds_combine_rows_backward_args& a, const Sources& sources, int64_t row) {
  alignas(64) float sum[kBlock];
  alignas(64) float buffer[kBlock];
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    for (int64_t i = 0; i < n; ++i) sum[i] = 0.0f;
    for (const int64_t* entry = sources.begin(row); entry != sources.end(row); ++entry) {
      const float* __restrict dy = read_block(a.dtype, a.dy, *entry / a.slots * a.columns + column, n, buffer);
      const float weight = float_at(a.weight_dtype, a.weights, *entry);
      for (int64_t i = 0; i < n; ++i) sum[i] += weight * dy[i];
    }
    store_block(a.dtype, sum, at(a.dx, row * a.columns + column, element_bytes(a.dtype)), n);
  });
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->tokens < 0 || a->slots < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  return all_rows_exist(a->index, a->tokens * a->slots, a->rows, -1) ? DS_OK : DS_INDEX_OUT_OF_RANGE;
}

}  // namespace

int32_t combine_rows(const void* arguments, const ds_exec* exec) {
  const ds_combine_rows_args* a = static_cast<const ds_combine_rows_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  for_rows(exec, a->tokens, a->columns * max64(a->slots, 1), [a](int64_t token) { combine_token(*a, token); });
  return DS_OK;
}

uint64_t combine_rows_backward_workspace(const void* arguments) {
  const ds_combine_rows_backward_args* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  return Sources::bytes(a->rows, a->tokens * a->slots);
}

int32_t combine_rows_backward(const void* arguments, const ds_exec* exec) {
  const ds_combine_rows_backward_args* a = static_cast<const ds_combine_rows_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (exec->workspace_bytes < combine_rows_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const Sources sources(exec->workspace, a->index, 1, a->tokens * a->slots, a->rows);
  for_rows(exec, a->tokens * a->slots, a->columns, [a](int64_t entry) { weight_gradient(*a, entry); });
  for_rows(exec, a->rows, a->columns, [a, &sources](int64_t row) { row_gradient(*a, sources, row); });
  return DS_OK;
}

}  // namespace dsk
