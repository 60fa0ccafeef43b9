// Tokens of many sequences without padding: kernels, and their rows of the op table.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t ragged_embed(const void* arguments, const ds_exec* exec);

}  // namespace dsk

#define DSK_RAGGED_ROWS {"ragged_embed", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::ragged_embed, nullptr},
