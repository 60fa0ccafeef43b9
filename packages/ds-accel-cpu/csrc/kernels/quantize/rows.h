// Quantization: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t quantize(const void* arguments, const ds_exec* exec);
int32_t dequantize(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_QUANTIZE_ROWS                                                \
  {"quantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantize, nullptr}, \
      {"dequantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::dequantize, nullptr},
