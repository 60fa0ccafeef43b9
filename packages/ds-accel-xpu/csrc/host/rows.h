// The op table: each op's function and the workspace it asks for. Families are files of this folder.
#pragma once

#include "launch.h"

// An op's name in ds-core, its function, and its workspace or nullptr. Several names may be one kernel: a call that
// adds a residual has one more input, and in place, or of halves of one tensor, means other addresses and strides.
// clang-format off
#define DSK_OPS(row)                                                                             \
  row("adam_", adam, nullptr)                                                                    \
  row("adagrad_", adagrad, nullptr)                                                              \
  row("lion_", lion, nullptr)                                                                    \
  row("sgd_", sgd, nullptr)                                                                      \
  row("sum_of_squares", sum_of_squares, sum_of_squares_workspace)                                \
  row("rms_norm_forward", rms_norm_forward, nullptr)                                             \
  row("rms_norm_backward", rms_norm_backward, rms_norm_backward_workspace)                       \
  row("layer_norm_forward", layer_norm_forward, nullptr)                                         \
  row("layer_norm_backward", layer_norm_backward, layer_norm_backward_workspace)                 \
  row("add_rms_norm_forward", rms_norm_forward, nullptr)                                         \
  row("add_rms_norm_backward", rms_norm_backward, rms_norm_backward_workspace)                   \
  row("add_layer_norm_forward", layer_norm_forward, nullptr)                                     \
  row("add_layer_norm_backward", layer_norm_backward, layer_norm_backward_workspace)             \
  row("rotary", rotary, nullptr)                                                                 \
  row("rotary_", rotary, nullptr)                                                                \
  row("gated_activation", gated_activation, nullptr)                                             \
  row("gated_activation_backward", gated_activation_backward, nullptr)                           \
  row("gated_activation_packed", gated_activation, nullptr)                                      \
  row("gated_activation_packed_backward", gated_activation_backward, nullptr)                    \
  row("softmax_forward", softmax_forward, nullptr)                                               \
  row("softmax_backward", softmax_backward, nullptr)                                             \
  row("cross_entropy_forward", cross_entropy_forward, nullptr)                                   \
  row("cross_entropy_backward", cross_entropy_backward, nullptr)                                 \
  row("cross_entropy_", cross_entropy_in_place, nullptr)                                         \
  row("quantize", quantize, nullptr)                                                             \
  row("dequantize", dequantize, nullptr)                                                         \
  row("quantized_reduce", quantized_reduce, nullptr)                                             \
  row("quantized_reduce_quantize", quantized_reduce_quantize, quantized_reduce_quantize_workspace) \
  row("swizzle_quantize", swizzle_quantize, nullptr)                                             \
  row("gather_rows", gather_rows, nullptr)                                                       \
  row("replace_rows", replace_rows, nullptr)                                                     \
  row("scatter_rows", scatter_rows, scatter_rows_workspace)                                      \
  row("scatter_rows_backward", scatter_rows_backward, nullptr)                                   \
  row("combine_rows", combine_rows, nullptr)                                                     \
  row("combine_rows_backward", combine_rows_backward, combine_rows_backward_workspace)           \
  row("linear_weight_only", linear_weight_only, nullptr)                                         \
  row("linear_w8a8", linear_w8a8, linear_w8a8_workspace)
// clang-format on

namespace dsk {

#define DSK_DECLARE(name, function, workspace) int32_t function(const void* arguments, const ds_exec* exec);
DSK_OPS(DSK_DECLARE)
#undef DSK_DECLARE

uint64_t sum_of_squares_workspace(const void* arguments);
uint64_t rms_norm_backward_workspace(const void* arguments);
uint64_t layer_norm_backward_workspace(const void* arguments);
uint64_t linear_w8a8_workspace(const void* arguments);
uint64_t quantized_reduce_quantize_workspace(const void* arguments);
uint64_t scatter_rows_workspace(const void* arguments);
uint64_t combine_rows_backward_workspace(const void* arguments);

}  // namespace dsk
