// The memory bound of adam_: the same four streams read and three written by the same tasks, with one addition each.
//
// Built by bench_adam.py as a kernel library of its own, so it is called through the same binding and thread pool.
#include "ds_kernel.h"

namespace {

constexpr int64_t kTask = 1 << 20;

int32_t traffic(const void* arguments, const ds_exec* exec) {
  const ds_adam_args* a = static_cast<const ds_adam_args*>(arguments);
  auto task = [](void* context, int64_t index) {
    const ds_adam_args& args = *static_cast<const ds_adam_args*>(context);
    float* __restrict param = static_cast<float*>(args.param);
    const float* __restrict grad = static_cast<const float*>(args.grad);
    float* __restrict exp_avg = static_cast<float*>(args.exp_avg);
    float* __restrict exp_avg_sq = static_cast<float*>(args.exp_avg_sq);
    const int64_t end = (index + 1) * kTask < args.numel ? (index + 1) * kTask : args.numel;
    for (int64_t i = index * kTask; i < end; ++i) {
      const float g = grad[i];
      param[i] += g;
      exp_avg[i] += g;
      exp_avg_sq[i] += g;
    }
  };
  exec->parallel_for(exec->pool, exec->threads, (a->numel + kTask - 1) / kTask, task, const_cast<ds_adam_args*>(a));
  return DS_OK;
}

const ds_kernel_entry kEntries[] = {{"adam_", 1, 0, traffic, nullptr}};
const ds_kernel_library kLibrary = {
    DS_KERNEL_MAGIC,
    DS_KERNEL_ABI_MAJOR,
    DS_KERNEL_ABI_MINOR,
    sizeof(ds_kernel_library),
    sizeof(ds_kernel_entry),
    1,
    0,
    "benchmark",
    "traffic",
    kEntries,
};

}  // namespace

extern "C" DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &kLibrary; }
