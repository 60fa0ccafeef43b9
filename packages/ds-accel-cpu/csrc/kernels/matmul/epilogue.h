// From sums over inputs to rows of y.
#pragma once

#include "matmul/layout.h"
#include "matmul/vectors.h"

namespace dsk::matmul {

// y[row, first .. first + count) = totals, times `factor`, plus bias; rounded to the dtype of y.
inline void write_row(const ds_linear_args& a, int64_t row, int64_t first, int64_t count, const float* totals,
                      float factor) {
  alignas(64) float values[kPanel];
  for (int64_t i = 0; i < count; ++i) values[i] = totals[i] * factor;
  if (a.bias != nullptr) {
    for (int64_t i = 0; i < count; ++i) values[i] += a.bias[first + i];
  }
  store_block(a.dtype, values, at(a.y, row * a.outputs + first, element_bytes(a.dtype)), count);
}

}  // namespace dsk::matmul
