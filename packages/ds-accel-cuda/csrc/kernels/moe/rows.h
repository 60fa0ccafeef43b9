// Mixtures of experts: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t top_k_gate(const void* arguments, const ds_exec* exec);
int32_t top_k_gate_backward(const void* arguments, const ds_exec* exec);
int32_t expert_permutation(const void* arguments, const ds_exec* exec);
uint64_t expert_permutation_workspace(const void* arguments);

}  // namespace dsk

#define DSK_MOE_ROWS                                                                               \
  {"top_k_gate", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::top_k_gate, nullptr},                       \
      {"top_k_gate_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::top_k_gate_backward, nullptr}, \
      {"expert_permutation", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::expert_permutation,             \
       dsk::expert_permutation_workspace},
