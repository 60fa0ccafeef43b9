// Attention: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t paged_attention(const void* arguments, const ds_exec* exec);
uint64_t paged_attention_workspace(const void* arguments);
int32_t paged_kv_write(const void* arguments, const ds_exec* exec);
int32_t tiled_attention_forward(const void* arguments, const ds_exec* exec);
int32_t tiled_attention_backward(const void* arguments, const ds_exec* exec);
uint64_t tiled_attention_backward_workspace(const void* arguments);

}  // namespace dsk

// Block-sparse and Evoformer attention differ in their strides, and in which of layout and biases they have.
#define DSK_ATTENTION_ROWS                                                                                        \
  {"paged_attention", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::paged_attention, dsk::paged_attention_workspace},     \
      {"paged_kv_write_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::paged_kv_write, nullptr},                         \
      {"block_sparse_attention_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::tiled_attention_forward, nullptr}, \
      {"block_sparse_attention_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::tiled_attention_backward,         \
       dsk::tiled_attention_backward_workspace},                                                                  \
      {"evoformer_attention_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::tiled_attention_forward, nullptr},    \
      {"evoformer_attention_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::tiled_attention_backward,            \
       dsk::tiled_attention_backward_workspace},
