// Reductions over ranks: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t reduce_ranks(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_REDUCE_ROWS {"reduce_ranks", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::reduce_ranks, nullptr},
