// sum_of_squares: fixed blocks, sixteen float64 lanes in each, added in a fixed order for any number of threads.
#include "convert.h"
#include "kernels.h"

namespace dsk {
namespace {

constexpr int64_t kSumBlock = 64 * kBlock;
constexpr int kLanes = 16;

void sum_block(const float* __restrict x, int64_t n, double* __restrict lanes) {
  double sums[kLanes];
  for (int j = 0; j < kLanes; ++j) sums[j] = lanes[j];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) {
      const double value = x[i + j];
      sums[j] += value * value;
    }
  }
  for (int j = 0; i + j < n; ++j) {
    const double value = x[i + j];
    sums[j] += value * value;
  }
  for (int j = 0; j < kLanes; ++j) lanes[j] = sums[j];
}

double fold(const double* lanes) {
  double folded[kLanes];
  for (int j = 0; j < kLanes; ++j) folded[j] = lanes[j];
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int j = 0; j < width; ++j) folded[j] += folded[j + width];
  }
  return folded[0];
}

double sum_task(const ds_sum_of_squares_args& a, int64_t task) {
  alignas(64) float buffer[kBlock];
  alignas(64) double lanes[kLanes] = {};
  const int64_t end = min64(a.numel, (task + 1) * kSumBlock);
  for (int64_t first = task * kSumBlock; first < end; first += kBlock) {
    const int64_t n = min64(kBlock, end - first);
    const float* block = buffer;
    if (a.dtype == DS_F32) {
      block = reinterpret_cast<const float*>(at(a.x, first, 4));
    } else {
      load_block(a.dtype, at(a.x, first, 2), buffer, n);
    }
    sum_block(block, n, lanes);
  }
  return fold(lanes);
}

}  // namespace

uint64_t sum_of_squares_workspace(const void* arguments) {
  const ds_sum_of_squares_args* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  return static_cast<uint64_t>(ceil_div(max64(a->numel, 0), kSumBlock)) * sizeof(double);
}

int32_t sum_of_squares(const void* arguments, const ds_exec* exec) {
  const ds_sum_of_squares_args* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(ds_sum_of_squares_args) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < sum_of_squares_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  double* partial = static_cast<double*>(exec->workspace);
  const int64_t tasks = ceil_div(a->numel, kSumBlock);
  parallel_for(exec, tasks, [a, partial](int64_t task) { partial[task] = sum_task(*a, task); });
  double total = 0.0;
  for (int64_t task = 0; task < tasks; ++task) total += partial[task];
  *a->out = static_cast<float>(total);
  return DS_OK;
}

}  // namespace dsk
