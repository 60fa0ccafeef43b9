// The kernels of this library, one declaration a table row.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t adam(const void* arguments, const ds_exec* exec);
int32_t sum_of_squares(const void* arguments, const ds_exec* exec);
uint64_t sum_of_squares_workspace(const void* arguments);
int32_t rms_norm_forward(const void* arguments, const ds_exec* exec);
uint64_t rms_norm_forward_workspace(const void* arguments);
int32_t rms_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t rms_norm_backward_workspace(const void* arguments);
int32_t layer_norm_forward(const void* arguments, const ds_exec* exec);
uint64_t layer_norm_forward_workspace(const void* arguments);
int32_t layer_norm_backward(const void* arguments, const ds_exec* exec);
uint64_t layer_norm_backward_workspace(const void* arguments);
int32_t quantize_int8(const void* arguments, const ds_exec* exec);
int32_t dequantize_int8(const void* arguments, const ds_exec* exec);

}  // namespace dsk
