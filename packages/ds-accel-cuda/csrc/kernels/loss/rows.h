// Losses: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t cross_entropy_forward(const void* arguments, const ds_exec* exec);
int32_t cross_entropy_backward(const void* arguments, const ds_exec* exec);
int32_t cross_entropy_in_place(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_LOSS_ROWS                                                                                    \
  {"cross_entropy_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::cross_entropy_forward, nullptr},       \
      {"cross_entropy_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::cross_entropy_backward, nullptr}, \
      {"cross_entropy_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::cross_entropy_in_place, nullptr},
