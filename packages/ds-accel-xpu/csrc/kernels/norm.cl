// rms_norm, layer_norm and their sums with a residual: a work-group per row, and gradients of weights by column.
#include "common.h"
#include "exact.h"

// Element i of what is normalized: x, or the sum with a residual, which the first sweep makes and rounds.
static inline float first_read(int dtype, Source x, Source residual, Target total, long i) {
  const float value = load(dtype, x, i);
  if (residual == 0) return value;
  const float sum = rounded(dtype, value + load(dtype, residual, i));
  store(dtype, total, i, sum);
  return sum;
}

kernel void rms_norm_forward(int dtype, int weight_dtype, float eps, long rows, long columns, const global void* x,
                             const global void* weight, global void* y, global float* rstd, const global void* residual,
                             global void* total) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long end = (row + 1) * columns;
    float squares = 0.0f;
    for (long i = row * columns + (long)get_local_id(0); i < end; i += kGroup) {
      const float value = first_read(dtype, x, residual, total, i);
      squares += value * value;
    }
    const float r = divide(1.0f, root(divide(group_sum(squares, scratch), (float)columns) + eps));
    if (get_local_id(0) == 0) rstd[row] = r;
    const global void* from = residual != 0 ? (const global void*)total : x;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      store(dtype, y, row * columns + j, load(dtype, from, row * columns + j) * r * load(weight_dtype, weight, j));
    }
  }
}

kernel void rms_norm_backward(int dtype, int weight_dtype, long rows, long columns, const global void* dy,
                              const global void* x, const global void* weight, const global float* rstd,
                              global void* dx, const global void* dtotal) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long first = row * columns;
    const float r = rstd[row];
    float along = 0.0f;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      along += load(dtype, dy, first + j) * load(weight_dtype, weight, j) * (load(dtype, x, first + j) * r);
    }
    along = divide(group_sum(along, scratch), (float)columns);
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      const float slope = load(dtype, dy, first + j) * load(weight_dtype, weight, j);
      float gradient = (slope - load(dtype, x, first + j) * r * along) * r;
      if (dtotal != 0) gradient += load(dtype, dtotal, first + j);
      store(dtype, dx, first + j, gradient);
    }
  }
}

kernel void layer_norm_forward(int dtype, int weight_dtype, float eps, long rows, long columns, const global void* x,
                               const global void* weight, const global void* bias, global void* y, global float* mean,
                               global float* rstd, const global void* residual, global void* total) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long first = row * columns;
    float sum = 0.0f;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      sum += first_read(dtype, x, residual, total, first + j);
    }
    const global void* from = residual != 0 ? (const global void*)total : x;
    const float m = divide(group_sum(sum, scratch), (float)columns);
    float squares = 0.0f;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      const float apart = load(dtype, from, first + j) - m;
      squares += apart * apart;
    }
    const float r = divide(1.0f, root(divide(group_sum(squares, scratch), (float)columns) + eps));
    if (get_local_id(0) == 0) {
      mean[row] = m;
      rstd[row] = r;
    }
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      float value = (load(dtype, from, first + j) - m) * r * load(weight_dtype, weight, j);
      if (bias != 0) value += load(weight_dtype, bias, j);
      store(dtype, y, first + j, value);
    }
  }
}

kernel void layer_norm_backward(int dtype, int weight_dtype, long rows, long columns, const global void* dy,
                                const global void* x, const global void* weight, const global float* mean,
                                const global float* rstd, global void* dx, const global void* dtotal) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long first = row * columns;
    const float m = mean[row];
    const float r = rstd[row];
    float along = 0.0f;
    float even = 0.0f;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      const float slope = load(dtype, dy, first + j) * load(weight_dtype, weight, j);
      along += slope * ((load(dtype, x, first + j) - m) * r);
      even += slope;
    }
    along = divide(group_sum(along, scratch), (float)columns);
    even = divide(group_sum(even, scratch), (float)columns);
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      const float slope = load(dtype, dy, first + j) * load(weight_dtype, weight, j);
      float gradient = (slope - (load(dtype, x, first + j) - m) * r * along - even) * r;
      if (dtotal != 0) gradient += load(dtype, dtotal, first + j);
      store(dtype, dx, first + j, gradient);
    }
  }
}

// Gradients of weight and, where there is a mean, of bias over the rows of each task: [tasks, columns] partial sums.
kernel void norm_by_column(int dtype, long rows, long columns, long tasks, long rows_per_task, const global void* dy,
                           const global void* x, const global float* mean, const global float* rstd,
                           global float* weights, global float* biases) {
  for (long i = item(); i < tasks * columns; i += items()) {
    const long first = i / columns * rows_per_task;
    const long column = i % columns;
    float weight = 0.0f;
    float bias = 0.0f;
    for (long row = first; row < min(rows, first + rows_per_task); ++row) {
      const float slope = load(dtype, dy, row * columns + column);
      const float value = load(dtype, x, row * columns + column);
      weight += slope * ((mean != 0 ? value - mean[row] : value) * rstd[row]);
      bias += slope;
    }
    weights[i] = weight;
    if (biases != 0) biases[i] = bias;
  }
}

// The tasks' sums, added in order.
kernel void add_tasks(int dtype, long columns, long tasks, const global float* partial, global void* out) {
  for (long column = item(); column < columns; column += items()) {
    float sum = 0.0f;
    for (long task = 0; task < tasks; ++task) sum += partial[task * columns + column];
    store(dtype, out, column, sum);
  }
}
