// Single elements, indices of rows, and units of work over rows.
#pragma once

#include "convert.h"

namespace dsk {

// One element as float32.
inline float float_at(int32_t dtype, const void* base, int64_t index) {
  float value;
  load_block(dtype, at(base, index, element_bytes(dtype)), &value, 1);
  return value;
}

inline void set_float(int32_t dtype, void* base, int64_t index, float value) {
  store_block(dtype, &value, at(base, index, element_bytes(dtype)), 1);
}

// Whether every value of an index names one of `rows` rows.
inline bool all_rows_exist(const int64_t* index, int64_t count, int64_t rows) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) good &= static_cast<uint64_t>(index[i]) < static_cast<uint64_t>(rows);
  return good;
}

// The same where `other` means no row.
inline bool all_rows_exist(const int64_t* index, int64_t count, int64_t rows, int64_t other) {
  bool good = true;
  for (int64_t i = 0; i < count; ++i) {
    good &= (static_cast<uint64_t>(index[i]) < static_cast<uint64_t>(rows)) | (index[i] == other);
  }
  return good;
}

// Calls body(row, column, n) for every block of every row, in parallel. For work that is independent by element.
template <typename Body>
inline void for_row_blocks(const ds_exec* exec, int64_t rows, int64_t columns, const Body& body) {
  if (rows == 0 || columns == 0) return;
  const int64_t blocks = ceil_div(columns, kBlock);
  const int64_t units = rows * blocks;
  const int64_t per_task = units_per_task(exec, rows * columns, min64(columns, kBlock));
  parallel_for(exec, ceil_div(units, per_task), [=, &body](int64_t task) {
    const int64_t end = min64(units, (task + 1) * per_task);
    for (int64_t unit = task * per_task; unit < end; ++unit) {
      const int64_t column = unit % blocks * kBlock;
      body(unit / blocks, column, min64(kBlock, columns - column));
    }
  });
}

// Rows in one task so that a task has a few dozen blocks of work; for results that do not depend on the split.
inline int64_t rows_per_task(const ds_exec* exec, int64_t rows, int64_t columns) {
  return units_per_task(exec, rows * max64(columns, 1), max64(columns, 1));
}

// Calls body(row) for every row, in parallel.
template <typename Body>
inline void for_rows(const ds_exec* exec, int64_t rows, int64_t columns, const Body& body) {
  const int64_t per_task = rows_per_task(exec, rows, columns);
  parallel_for(exec, ceil_div(rows, per_task), [=, &body](int64_t task) {
    const int64_t end = min64(rows, (task + 1) * per_task);
    for (int64_t row = task * per_task; row < end; ++row) body(row);
  });
}

}  // namespace dsk
