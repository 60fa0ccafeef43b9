// Rotary embeddings, activations and softmax: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t rotary(const void* arguments, const ds_exec* exec);
int32_t gated_activation(const void* arguments, const ds_exec* exec);
int32_t gated_activation_backward(const void* arguments, const ds_exec* exec);
int32_t softmax_forward(const void* arguments, const ds_exec* exec);
int32_t softmax_backward(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_ACTIVATION_ROW(name, function) {name, 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::function, nullptr},

// In place, or of halves of one tensor, is the same kernel with other addresses and strides.
#define DSK_ACTIVATION_ROWS                                                         \
  DSK_ACTIVATION_ROW("rotary", rotary)                                              \
  DSK_ACTIVATION_ROW("rotary_", rotary)                                             \
  DSK_ACTIVATION_ROW("gated_activation", gated_activation)                          \
  DSK_ACTIVATION_ROW("gated_activation_backward", gated_activation_backward)        \
  DSK_ACTIVATION_ROW("gated_activation_packed", gated_activation)                   \
  DSK_ACTIVATION_ROW("gated_activation_packed_backward", gated_activation_backward) \
  DSK_ACTIVATION_ROW("softmax_forward", softmax_forward)                            \
  DSK_ACTIVATION_ROW("softmax_backward", softmax_backward)
