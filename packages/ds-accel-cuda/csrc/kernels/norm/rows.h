// Normalizations: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t rms_norm_forward(const void* arguments, const ds_exec* exec);
int32_t rms_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t rms_norm_backward_workspace(const void* arguments);
int32_t layer_norm_forward(const void* arguments, const ds_exec* exec);
int32_t layer_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t layer_norm_backward_workspace(const void* arguments);

}  // namespace dsk

#define DSK_NORM_ROW(name, function, workspace) {name, 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::function, workspace},

// A call that adds a residual is the same kernel with one more input.
#define DSK_NORM_ROWS                                                                          \
  DSK_NORM_ROW("rms_norm_forward", rms_norm_forward, nullptr)                                  \
  DSK_NORM_ROW("rms_norm_backward", rms_norm_backward, dsk::rms_norm_backward_workspace)       \
  DSK_NORM_ROW("layer_norm_forward", layer_norm_forward, nullptr)                              \
  DSK_NORM_ROW("layer_norm_backward", layer_norm_backward, dsk::layer_norm_backward_workspace) \
  DSK_NORM_ROW("add_rms_norm_forward", rms_norm_forward, nullptr)                              \
  DSK_NORM_ROW("add_rms_norm_backward", rms_norm_backward, dsk::rms_norm_backward_workspace)   \
  DSK_NORM_ROW("add_layer_norm_forward", layer_norm_forward, nullptr)                          \
  DSK_NORM_ROW("add_layer_norm_backward", layer_norm_backward, dsk::layer_norm_backward_workspace)
