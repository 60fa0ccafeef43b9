// Normalizations: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t rms_norm_forward(const void* arguments, const ds_exec* exec);
uint64_t rms_norm_forward_workspace(const void* arguments);
int32_t rms_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t rms_norm_backward_workspace(const void* arguments);
int32_t layer_norm_forward(const void* arguments, const ds_exec* exec);
uint64_t layer_norm_forward_workspace(const void* arguments);
int32_t layer_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t layer_norm_backward_workspace(const void* arguments);

}  // namespace dsk

#define DSK_NORM_ROWS                                                                                            \
  {"rms_norm_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::rms_norm_forward, dsk::rms_norm_forward_workspace}, \
      {"rms_norm_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::rms_norm_backward,                             \
       dsk::rms_norm_backward_workspace},                                                                        \
      {"layer_norm_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::layer_norm_forward,                           \
       dsk::layer_norm_forward_workspace},                                                                       \
      {"layer_norm_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::layer_norm_backward,                         \
       dsk::layer_norm_backward_workspace},
