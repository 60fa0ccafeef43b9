// sum_of_squares: blocks of fixed size, each added by its threads in float64, then the blocks by one block.
#include "gpu/gpu.h"
#include "optim/rows.h"

namespace dsk {
namespace {

constexpr int64_t kUnit = 64 * 1024;  // elements of a block; the result does not depend on the device
constexpr int kFoldThreads = 1024;

template <typename T>
__global__ void __launch_bounds__(kThreads) squares_kernel(const T* x, int64_t numel, int64_t units, double* partial) {
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const int64_t end = min64(numel, (unit + 1) * kUnit);
    double sum = 0.0;
    for (int64_t i = unit * kUnit + threadIdx.x; i < end; i += kThreads) {
      const double value = to_float(x[i]);
      sum += value * value;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partial[unit] = sum;
  }
}

__global__ void __launch_bounds__(kFoldThreads) fold_kernel(const double* partial, int64_t units, double* out) {
  double sum = 0.0;
  for (int64_t unit = threadIdx.x; unit < units; unit += kFoldThreads) sum += partial[unit];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *out = sum;
}

}  // namespace

uint64_t sum_of_squares_workspace(const void* arguments) {
  const ds_sum_of_squares_args* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  return static_cast<uint64_t>(ceil_div(max64(a->numel, 0), kUnit)) * sizeof(double);
}

int32_t sum_of_squares(const void* arguments, const ds_exec* exec) {
  const ds_sum_of_squares_args* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (exec->workspace_bytes < sum_of_squares_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  double* const partial = static_cast<double*>(exec->workspace);
  const int64_t units = ceil_div(a->numel, kUnit);
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const int32_t status = launch(exec, Shape(blocks_for(units, 1), kThreads), squares_kernel<T>,
                                  static_cast<const T*>(a->x), a->numel, units, partial);
    if (status != DS_OK) return status;
    return launch(exec, Shape(1, kFoldThreads), fold_kernel, partial, units, a->out);
  });
}

}  // namespace dsk
