// The kernels of this library, one declaration a table row.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

int32_t adam(const void* arguments, const ds_exec* exec);
int32_t sum_of_squares(const void* arguments, const ds_exec* exec);
uint64_t sum_of_squares_workspace(const void* arguments);

}  // namespace dsk
