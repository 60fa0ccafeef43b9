// Quantization: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t quantize(const void* arguments, const ds_exec* exec);
uint64_t quantize_workspace(const void* arguments);
int32_t dequantize(const void* arguments, const ds_exec* exec);
int32_t quantized_reduce(const void* arguments, const ds_exec* exec);
int32_t quantized_reduce_quantize(const void* arguments, const ds_exec* exec);
int32_t swizzle_quantize(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_QUANTIZE_ROWS                                                                                      \
  {"quantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantize, dsk::quantize_workspace},                       \
      {"dequantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::dequantize, nullptr},                               \
      {"quantized_reduce", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantized_reduce, nullptr},                   \
      {"quantized_reduce_quantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantized_reduce_quantize, nullptr}, \
      {"swizzle_quantize", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::swizzle_quantize, nullptr},
