// Optimizers and what they read: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t sum_of_squares(const void* arguments, const ds_exec* exec);
uint64_t sum_of_squares_workspace(const void* arguments);

}  // namespace dsk

#define DSK_OPTIM_ROWS \
  {"sum_of_squares", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::sum_of_squares, dsk::sum_of_squares_workspace},
