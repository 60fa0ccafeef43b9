// Products with quantized weights: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t linear_weight_only(const void* arguments, const ds_exec* exec);
int32_t linear_w8a8(const void* arguments, const ds_exec* exec);
uint64_t linear_w8a8_workspace(const void* arguments);

}  // namespace dsk

#define DSK_MATMUL_ROWS                                                                      \
  {"linear_weight_only", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::linear_weight_only, nullptr}, \
      {"linear_w8a8", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::linear_w8a8, dsk::linear_w8a8_workspace},
