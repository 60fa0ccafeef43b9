// rms_norm_forward and rms_norm_backward.
#include "norm/rows.h"
#include "row_split.h"

namespace dsk {
namespace {

// What is normalized: x, or the sum that the call makes.
const void* normalized_rows(const ds_rms_norm_forward_args& a) { return a.residual != nullptr ? a.total : a.x; }

float row_rstd(const ds_rms_norm_forward_args& a, int64_t row) {
  alignas(64) float buffer[kBlock];
  FloatLanes squares;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const float* __restrict x = read_block(a.dtype, normalized_rows(a), row * a.columns + column, n, buffer);
    squares.add(n, [x](int64_t i) { return x[i] * x[i]; });
  });
  return 1.0f / __builtin_sqrtf(squares.fold() / static_cast<float>(a.columns) + a.eps);
}

void forward_row(const ds_rms_norm_forward_args& a, const float* weight, int64_t row) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float y_buffer[kBlock];
  if (a.residual != nullptr) add_residual(a.dtype, a.x, a.residual, row, a.columns, a.total);
  const float rstd = row_rstd(a, row);
  a.rstd[row] = rstd;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, normalized_rows(a), first, n, x_buffer);
    const float* __restrict w = weight + column;
    for (int64_t i = 0; i < n; ++i) y_buffer[i] = x[i] * rstd * w[i];
    store_block(a.dtype, y_buffer, at(a.y, first, element_bytes(a.dtype)), n);
  });
}

// Dot of weight * dy with the normalized row, over its columns.
float row_projection(const ds_rms_norm_backward_args& a, const float* weight, int64_t row, float* dweight) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float dy_buffer[kBlock];
  const float rstd = a.rstd[row];
  FloatLanes products;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, a.x, first, n, x_buffer);
    const float* __restrict dy = read_block(a.dtype, a.dy, first, n, dy_buffer);
    const float* __restrict w = weight + column;
    float* __restrict dw = dweight + column;
    products.add(n, [=](int64_t i) { return dy[i] * w[i] * (x[i] * rstd); });
    for (int64_t i = 0; i < n; ++i) dw[i] += dy[i] * (x[i] * rstd);
  });
  return products.fold() / static_cast<float>(a.columns);
}

void backward_row(const ds_rms_norm_backward_args& a, const float* weight, int64_t row, float* dweight) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float dy_buffer[kBlock];
  alignas(64) float dx_buffer[kBlock];
  const float rstd = a.rstd[row];
  const float projection = row_projection(a, weight, row, dweight);
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, a.x, first, n, x_buffer);
    const float* __restrict dy = read_block(a.dtype, a.dy, first, n, dy_buffer);
    const float* __restrict w = weight + column;
    for (int64_t i = 0; i < n; ++i) dx_buffer[i] = (dy[i] * w[i] - x[i] * rstd * projection) * rstd;
    add_block(a.dtype, a.dtotal, first, n, dx_buffer);
    store_block(a.dtype, dx_buffer, at(a.dx, first, element_bytes(a.dtype)), n);
  });
}

}  // namespace

uint64_t rms_norm_forward_workspace(const void* arguments) {
  const ds_rms_norm_forward_args* a = static_cast<const ds_rms_norm_forward_args*>(arguments);
  return aligned_floats(a->columns) * sizeof(float);
}

int32_t rms_norm_forward(const void* arguments, const ds_exec* exec) {
  const ds_rms_norm_forward_args* a = static_cast<const ds_rms_norm_forward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  FloatArena arena(exec->workspace, exec->workspace_bytes);
  float* buffer = arena.take(a->columns);
  if (buffer == nullptr && a->columns > 0) return DS_WORKSPACE_TOO_SMALL;
  const float* weight = float_vector(a->weight_dtype, a->weight, a->columns, buffer);
  const RowSplit split = split_rows(a->rows, a->columns);
  parallel_for(exec, split.tasks, [a, weight, split](int64_t task) {
    const int64_t end = min64(split.rows, (task + 1) * split.rows_per_task);
    for (int64_t row = task * split.rows_per_task; row < end; ++row) forward_row(*a, weight, row);
  });
  return DS_OK;
}

uint64_t rms_norm_backward_workspace(const void* arguments) {
  const ds_rms_norm_backward_args* a = static_cast<const ds_rms_norm_backward_args*>(arguments);
  const uint64_t vectors = 1 + static_cast<uint64_t>(max64(1, split_rows(a->rows, a->columns).tasks));
  return aligned_floats(a->columns) * sizeof(float) * vectors;
}

int32_t rms_norm_backward(const void* arguments, const ds_exec* exec) {
  const ds_rms_norm_backward_args* a = static_cast<const ds_rms_norm_backward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < rms_norm_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const RowSplit split = split_rows(a->rows, a->columns);
  const int64_t stride = static_cast<int64_t>(aligned_floats(a->columns));
  FloatArena arena(exec->workspace, exec->workspace_bytes);
  const float* weight = float_vector(a->weight_dtype, a->weight, a->columns, arena.take(a->columns));
  float* partials = arena.take(stride * max64(1, split.tasks));
  parallel_for(exec, split.tasks, [a, weight, split, partials, stride](int64_t task) {
    float* dweight = partials + task * stride;
    for (int64_t j = 0; j < a->columns; ++j) dweight[j] = 0.0f;
    const int64_t end = min64(split.rows, (task + 1) * split.rows_per_task);
    for (int64_t row = task * split.rows_per_task; row < end; ++row) backward_row(*a, weight, row, dweight);
  });
  add_partials(partials, split.tasks, stride, a->columns, a->weight_dtype, a->dweight);
  return DS_OK;
}

}  // namespace dsk
