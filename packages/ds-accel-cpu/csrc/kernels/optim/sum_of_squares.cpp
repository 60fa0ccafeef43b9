// sum_of_squares: fixed blocks, sixteen float64 lanes in each, added in a fixed order for any number of threads.
#include "convert.h"
#include "lanes.h"
#include "optim/rows.h"

namespace dsk {
namespace {

constexpr int64_t kSumBlock = 64 * kBlock;

double sum_unit(const ds_sum_of_squares_args& a, int64_t unit) {
  alignas(64) float buffer[kBlock];
  DoubleLanes lanes;
  const int64_t end = min64(a.numel, (unit + 1) * kSumBlock);
  for (int64_t first = unit * kSumBlock; first < end; first += kBlock) {
    const int64_t n = min64(kBlock, end - first);
    const float* block = buffer;
    if (a.dtype == DS_F32) {
      block = reinterpret_cast<const float*>(at(a.x, first, 4));
    } else {
      load_block(a.dtype, at(a.x, first, 2), buffer, n);
    }
    lanes.add(n, [block](int64_t i) {
      const double value = block[i];
      return value * value;
    });
  }
  return lanes.fold();
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
  const int64_t units = ceil_div(a->numel, kSumBlock);
  const int64_t per_task = units_per_task(exec, a->numel, kSumBlock);
  parallel_for(exec, ceil_div(units, per_task), [=](int64_t task) {
    const int64_t end = min64(units, (task + 1) * per_task);
    for (int64_t unit = task * per_task; unit < end; ++unit) partial[unit] = sum_unit(*a, unit);
  });
  double total = 0.0;
  for (int64_t unit = 0; unit < units; ++unit) total += partial[unit];
  *a->out = total;
  return DS_OK;
}

}  // namespace dsk
