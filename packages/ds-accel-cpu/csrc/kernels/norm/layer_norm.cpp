// layer_norm_forward and layer_norm_backward.
#include "norm/rows.h"
#include "row_split.h"

namespace dsk {
namespace {

// What is normalized: x, or the sum that the call makes.
const void* normalized_rows(const ds_layer_norm_forward_args& a) { return a.residual != nullptr ? a.total : a.x; }

struct Statistics {
  float mean;
  float rstd;
};

Statistics row_statistics(const ds_layer_norm_forward_args& a, int64_t row) {
  alignas(64) float buffer[kBlock];
  const float count = static_cast<float>(a.columns);
  FloatLanes sums;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const float* __restrict x = read_block(a.dtype, normalized_rows(a), row * a.columns + column, n, buffer);
    sums.add(n, [x](int64_t i) { return x[i]; });
  });
  const float mean = sums.fold() / count;
  FloatLanes squares;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const float* __restrict x = read_block(a.dtype, normalized_rows(a), row * a.columns + column, n, buffer);
    squares.add(n, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); });
  });
  return {mean, 1.0f / __builtin_sqrtf(squares.fold() / count + a.eps)};
}

void forward_row(const ds_layer_norm_forward_args& a, const float* weight, const float* bias, int64_t row) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float y_buffer[kBlock];
  if (a.residual != nullptr) add_residual(a.dtype, a.x, a.residual, row, a.columns, a.total);
  const Statistics s = row_statistics(a, row);
  a.mean[row] = s.mean;
  a.rstd[row] = s.rstd;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, normalized_rows(a), first, n, x_buffer);
    const float* __restrict w = weight + column;
    for (int64_t i = 0; i < n; ++i) y_buffer[i] = (x[i] - s.mean) * s.rstd * w[i];
    if (bias != nullptr) {
      const float* __restrict b = bias + column;
      for (int64_t i = 0; i < n; ++i) y_buffer[i] += b[i];
    }
    store_block(a.dtype, y_buffer, at(a.y, first, element_bytes(a.dtype)), n);
  });
}

struct Projections {
  float normalized;  // mean of weight * dy * normalized x
  float ones;        // mean of weight * dy
};

Projections row_projections(const ds_layer_norm_backward_args& a, const float* weight, int64_t row, float* dweight,
                            float* dbias) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float dy_buffer[kBlock];
  const float mean = a.mean[row];
  const float rstd = a.rstd[row];
  const float count = static_cast<float>(a.columns);
  FloatLanes normalized;
  FloatLanes ones;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, a.x, first, n, x_buffer);
    const float* __restrict dy = read_block(a.dtype, a.dy, first, n, dy_buffer);
    const float* __restrict w = weight + column;
    float* __restrict dw = dweight + column;
    float* __restrict db = dbias + column;
    normalized.add(n, [=](int64_t i) { return dy[i] * w[i] * ((x[i] - mean) * rstd); });
    ones.add(n, [=](int64_t i) { return dy[i] * w[i]; });
    for (int64_t i = 0; i < n; ++i) dw[i] += dy[i] * ((x[i] - mean) * rstd);
    for (int64_t i = 0; i < n; ++i) db[i] += dy[i];
  });
  return {normalized.fold() / count, ones.fold() / count};
}

void backward_row(const ds_layer_norm_backward_args& a, const float* weight, int64_t row, float* dweight,
                  float* dbias) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float dy_buffer[kBlock];
  alignas(64) float dx_buffer[kBlock];
  const float mean = a.mean[row];
  const float rstd = a.rstd[row];
  const Projections p = row_projections(a, weight, row, dweight, dbias);
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict x = read_block(a.dtype, a.x, first, n, x_buffer);
    const float* __restrict dy = read_block(a.dtype, a.dy, first, n, dy_buffer);
    const float* __restrict w = weight + column;
    for (int64_t i = 0; i < n; ++i) {
      dx_buffer[i] = (dy[i] * w[i] - (x[i] - mean) * rstd * p.normalized - p.ones) * rstd;
    }
    add_block(a.dtype, a.dtotal, first, n, dx_buffer);
    store_block(a.dtype, dx_buffer, at(a.dx, first, element_bytes(a.dtype)), n);
  });
}

}  // namespace

uint64_t layer_norm_forward_workspace(const void* arguments) {
  const ds_layer_norm_forward_args* a = static_cast<const ds_layer_norm_forward_args*>(arguments);
  return aligned_floats(a->columns) * sizeof(float) * 2;
}

int32_t layer_norm_forward(const void* arguments, const ds_exec* exec) {
  const ds_layer_norm_forward_args* a = static_cast<const ds_layer_norm_forward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < layer_norm_forward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  FloatArena arena(exec->workspace, exec->workspace_bytes);
  const float* weight = float_vector(a->weight_dtype, a->weight, a->columns, arena.take(a->columns));
  const float* bias = float_vector(a->weight_dtype, a->bias, a->columns, arena.take(a->columns));
  const RowSplit split = split_rows(a->rows, a->columns);
  parallel_for(exec, split.tasks, [a, weight, bias, split](int64_t task) {
    const int64_t end = min64(split.rows, (task + 1) * split.rows_per_task);
    for (int64_t row = task * split.rows_per_task; row < end; ++row) forward_row(*a, weight, bias, row);
  });
  return DS_OK;
}

uint64_t layer_norm_backward_workspace(const void* arguments) {
  const ds_layer_norm_backward_args* a = static_cast<const ds_layer_norm_backward_args*>(arguments);
  const uint64_t vectors = 1 + 2 * static_cast<uint64_t>(max64(1, split_rows(a->rows, a->columns).tasks));
  return aligned_floats(a->columns) * sizeof(float) * vectors;
}

int32_t layer_norm_backward(const void* arguments, const ds_exec* exec) {
  const ds_layer_norm_backward_args* a = static_cast<const ds_layer_norm_backward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || !is_float(a->weight_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < layer_norm_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const RowSplit split = split_rows(a->rows, a->columns);
  const int64_t stride = static_cast<int64_t>(aligned_floats(a->columns));
  FloatArena arena(exec->workspace, exec->workspace_bytes);
  const float* weight = float_vector(a->weight_dtype, a->weight, a->columns, arena.take(a->columns));
  float* dweights = arena.take(stride * max64(1, split.tasks));
  float* dbiases = arena.take(stride * max64(1, split.tasks));
  parallel_for(exec, split.tasks, [=](int64_t task) {
    float* dweight = dweights + task * stride;
    float* dbias = dbiases + task * stride;
    for (int64_t j = 0; j < a->columns; ++j) dweight[j] = dbias[j] = 0.0f;
    const int64_t end = min64(split.rows, (task + 1) * split.rows_per_task);
    for (int64_t row = task * split.rows_per_task; row < end; ++row) backward_row(*a, weight, row, dweight, dbias);
  });
  add_partials(dweights, split.tasks, stride, a->columns, a->weight_dtype, a->dweight);
  add_partials(dbiases, split.tasks, stride, a->columns, a->weight_dtype, a->dbias);
  return DS_OK;
}

}  // namespace dsk
