// Quantization: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t quantize_int8(const void* arguments, const ds_exec* exec);
int32_t dequantize_int8(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_QUANTIZE_ROWS                                                          \
  {"quantize_int8", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantize_int8, nullptr}, \
      {"dequantize_int8", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::dequantize_int8, nullptr},
