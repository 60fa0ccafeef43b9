// cross_entropy_forward, cross_entropy_backward and cross_entropy_: a work-group per row of logits.
//
// Each work-item keeps the largest value so far and the sum of exponentials relative to it, and scales the sum down
// when a larger value comes, so that the forward reads the logits once.
// Source: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
#include "common.h"
#include "elementary.h"

struct RowLoss {
  float loss;
  float lse;
};

static inline RowLoss row_loss(int dtype, float smoothing, float z, long columns, Source logits, long first,
                               long target, local float* scratch) {
  float largest = -INFINITY;
  float sum = 0.0f;
  float total = 0.0f;
  for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
    const float value = load(dtype, logits, first + j);
    total += value;
    if (value == -INFINITY) continue;
    if (!(value <= largest)) {
      sum *= exp_of(largest - value);
      largest = value;
    }
    sum += exp_of(value - largest);
  }
  const float peak = group_max(largest, scratch);
  sum = group_sum(largest == -INFINITY ? 0.0f : sum * exp_of(largest - peak), scratch);
  total = group_sum(total, scratch);
  const float rest = log_of(sum);
  const float lse = peak + rest;
  if (!exists(target, columns)) return {kBad, lse};
  const float picked = load(dtype, logits, first + target);
  float loss = smoothing != 0.0f ? lse - (1.0f - smoothing) * picked : (peak - picked) + rest;
  if (smoothing != 0.0f) loss -= smoothing * divide(total, (float)columns);
  if (z != 0.0f) loss += z * lse * lse;
  return {loss, lse};
}

static inline void row_gradient(int dtype, float smoothing, float z, long columns, float dloss, Source logits,
                                long first, long target, float lse, Target dlogits) {
  const float slope = dloss * (1.0f + 2.0f * z * lse);
  const float even = dloss * divide(smoothing, (float)columns);
  for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
    float gradient = exp_of(load(dtype, logits, first + j) - lse) * slope - even;
    if (j == target) gradient -= dloss * (1.0f - smoothing);
    store(dtype, dlogits, first + j, gradient);
  }
}

static inline void fill_row(int dtype, long columns, Target out, long first, float value) {
  for (long j = (long)get_local_id(0); j < columns; j += kGroup) store(dtype, out, first + j, value);
}

kernel void cross_entropy_forward(int dtype, float smoothing, float z, long rows, long columns, long ignore_index,
                                  const global void* logits, const global long* target, global float* losses,
                                  global float* lse) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    RowLoss found = {0.0f, 0.0f};
    if (target[row] != ignore_index) {
      found = row_loss(dtype, smoothing, z, columns, logits, row * columns, target[row], scratch);
    }
    if (get_local_id(0) == 0) {
      losses[row] = found.loss;
      lse[row] = found.lse;
    }
  }
}

kernel void cross_entropy_backward(int dtype, float smoothing, float z, long rows, long columns, long ignore_index,
                                   const global float* dlosses, const global void* logits, const global long* target,
                                   const global float* lse, global void* dlogits) {
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    if (target[row] == ignore_index) {
      fill_row(dtype, columns, dlogits, row * columns, 0.0f);
    } else if (!exists(target[row], columns)) {
      fill_row(dtype, columns, dlogits, row * columns, kBad);
    } else {
      row_gradient(dtype, smoothing, z, columns, dlosses[row], logits, row * columns, target[row], lse[row], dlogits);
    }
  }
}

kernel void cross_entropy_in_place(int dtype, float smoothing, float z, float factor, long rows, long columns,
                                   long ignore_index, global void* logits, const global long* target,
                                   global float* losses) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    RowLoss found = {0.0f, 0.0f};
    if (target[row] != ignore_index) {
      found = row_loss(dtype, smoothing, z, columns, logits, row * columns, target[row], scratch);
      barrier(CLK_GLOBAL_MEM_FENCE | CLK_LOCAL_MEM_FENCE);  // every item has read its logit of the target
    }
    if (get_local_id(0) == 0) losses[row] = found.loss;
    if (target[row] == ignore_index) {
      fill_row(dtype, columns, logits, row * columns, 0.0f);
    } else if (!exists(target[row], columns)) {
      fill_row(dtype, columns, logits, row * columns, kBad);
    } else {
      row_gradient(dtype, smoothing, z, columns, factor, logits, row * columns, target[row], found.lse, logits);
    }
  }
}
