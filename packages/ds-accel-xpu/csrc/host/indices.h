// What becomes of an index that names no row.
//
// Note [Late news]
// On a device nobody may wait for a kernel, so the flag that check_index sets is read when the next call with an index
// comes, and that call fails; until then the results show NaN. On a CPU device, where tests run, the flag is read at
// once, and nothing is written.
#pragma once

#include "launch.h"

namespace dsk {

// Checks `count` values of an index: each names one of `rows` rows or is `other`; runs of `length` rise unless it is 0.
// Returns DS_OK, DS_INDEX_OUT_OF_RANGE (see Note [Late news]) or DS_DEVICE_ERROR.
int32_t check_indices(const ds_exec* exec, const int64_t* index, int64_t count, int64_t rows, int64_t other,
                      int64_t length = 0);

constexpr int64_t kNoOther = INT64_MIN;

}  // namespace dsk
