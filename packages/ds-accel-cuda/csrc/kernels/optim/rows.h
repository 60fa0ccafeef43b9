// Optimizers and what they read: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t adam(const void* arguments, const ds_exec* exec);
int32_t adam8bit(const void* arguments, const ds_exec* exec);
int32_t adagrad(const void* arguments, const ds_exec* exec);
int32_t lamb_moments(const void* arguments, const ds_exec* exec);
uint64_t lamb_moments_workspace(const void* arguments);
int32_t lamb_apply(const void* arguments, const ds_exec* exec);
uint64_t lamb_apply_workspace(const void* arguments);
int32_t lion(const void* arguments, const ds_exec* exec);
int32_t sgd(const void* arguments, const ds_exec* exec);
int32_t sum_of_squares(const void* arguments, const ds_exec* exec);
uint64_t sum_of_squares_workspace(const void* arguments);

}  // namespace dsk

#define DSK_OPTIM_ROWS                                                                                    \
  {"adam_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::adam, nullptr},                                         \
      {"adam8bit_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::adam8bit, nullptr},                             \
      {"adagrad_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::adagrad, nullptr},                               \
      {"lamb_moments_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::lamb_moments, dsk::lamb_moments_workspace}, \
      {"lamb_apply_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::lamb_apply, dsk::lamb_apply_workspace},       \
      {"lion_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::lion, nullptr},                                     \
      {"sgd_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::sgd, nullptr},                                       \
      {"sum_of_squares", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::sum_of_squares, dsk::sum_of_squares_workspace},
