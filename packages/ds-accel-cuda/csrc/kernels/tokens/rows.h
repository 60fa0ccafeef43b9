// Rows moved by index: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t gather_rows(const void* arguments, const ds_exec* exec);
int32_t replace_rows(const void* arguments, const ds_exec* exec);
int32_t scatter_rows(const void* arguments, const ds_exec* exec);
uint64_t scatter_rows_workspace(const void* arguments);
int32_t scatter_rows_backward(const void* arguments, const ds_exec* exec);
int32_t combine_rows(const void* arguments, const ds_exec* exec);
int32_t combine_rows_backward(const void* arguments, const ds_exec* exec);
uint64_t combine_rows_backward_workspace(const void* arguments);

}  // namespace dsk

#define DSK_TOKENS_ROWS                                                                                  \
  {"gather_rows", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::gather_rows, nullptr},                           \
      {"replace_rows", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::replace_rows, nullptr},                     \
      {"scatter_rows", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::scatter_rows, dsk::scatter_rows_workspace}, \
      {"scatter_rows_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::scatter_rows_backward, nullptr},   \
      {"combine_rows", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::combine_rows, nullptr},                     \
      {"combine_rows_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::combine_rows_backward,             \
       dsk::combine_rows_backward_workspace},
