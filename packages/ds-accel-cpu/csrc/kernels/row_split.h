// What the normalizations share: the split of rows into tasks, float32 views of blocks, and sums over rows.
#pragma once

#include "convert.h"
#include "lanes.h"

namespace dsk {

// Note [Tasks of a normalization]
// The split depends on the shape alone. Gradients of weights are summed row by row within a task, and tasks are added
// in order, so they do not depend on the number of threads. At most kMaxTasks tasks bound the workspace.
constexpr int64_t kMaxTasks = 64;

struct RowSplit {
  int64_t rows;
  int64_t rows_per_task;
  int64_t tasks;
};

inline RowSplit split_rows(int64_t rows, int64_t columns) {
  const int64_t by_size = max64(1, 32 * kBlock / max64(columns, 1));
  const int64_t per_task = max64(by_size, ceil_div(rows, kMaxTasks));
  return {rows, per_task, rows == 0 ? 0 : ceil_div(rows, per_task)};
}

inline uint64_t aligned_floats(int64_t count) { return static_cast<uint64_t>((count + 15) & ~int64_t{15}); }

// Workspace as float32 arrays, each aligned to a cache line.
class FloatArena {
 public:
  FloatArena(void* memory, uint64_t bytes) : next_(static_cast<float*>(memory)), left_(bytes / sizeof(float)) {}
  float* take(int64_t count) {
    const uint64_t size = aligned_floats(count);
    if (size > left_) return nullptr;
    float* taken = next_;
    next_ += size;
    left_ -= size;
    return taken;
  }

 private:
  float* next_;
  uint64_t left_;
};

// A vector of parameters as float32: itself, or converted into `buffer`. NULL stays NULL.
inline const float* float_vector(int32_t dtype, const void* vector, int64_t n, float* buffer) {
  if (vector == nullptr || dtype == DS_F32) return static_cast<const float*>(vector);
  load_block(dtype, vector, buffer, n);
  return buffer;
}

// Elements [first, first + n) as float32: themselves, or converted into `buffer`.
DSK_INLINE const float* read_block(int32_t dtype, const void* base, int64_t first, int64_t n, float* buffer) {
  if (dtype == DS_F32) return reinterpret_cast<const float*>(at(base, first, 4));
  load_block(dtype, at(base, first, 2), buffer, n);
  return buffer;
}

// Calls body(column, n) for the blocks of a row.
template <typename Body>
DSK_INLINE void for_blocks(int64_t columns, const Body& body) {
  for (int64_t column = 0; column < columns; column += kBlock) body(column, min64(kBlock, columns - column));
}

// total = x + residual over one row, rounded to `dtype`.
inline void add_residual(int32_t dtype, const void* x, const void* residual, int64_t row, int64_t columns,
                         void* total) {
  alignas(64) float x_buffer[kBlock];
  alignas(64) float residual_buffer[kBlock];
  alignas(64) float total_buffer[kBlock];
  for_blocks(columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * columns + column;
    const float* __restrict a = read_block(dtype, x, first, n, x_buffer);
    const float* __restrict b = read_block(dtype, residual, first, n, residual_buffer);
    for (int64_t i = 0; i < n; ++i) total_buffer[i] = a[i] + b[i];
    store_block(dtype, total_buffer, at(total, first, element_bytes(dtype)), n);
  });
}

// Adds elements [first, first + n) of a tensor to a block, if there is one.
DSK_INLINE void add_block(int32_t dtype, const void* tensor, int64_t first, int64_t n, float* __restrict block) {
  if (tensor == nullptr) return;
  alignas(64) float buffer[kBlock];
  const float* __restrict more = read_block(dtype, tensor, first, n, buffer);
  for (int64_t i = 0; i < n; ++i) block[i] += more[i];
}

// Adds the tasks' partial sums in order, into the first of them, and writes them out in `dtype`.
inline void add_partials(float* partials, int64_t tasks, int64_t stride, int64_t columns, int32_t dtype, void* out) {
  if (out == nullptr) return;
  float* __restrict total = partials;
  if (tasks == 0) {
    for (int64_t j = 0; j < columns; ++j) total[j] = 0.0f;
  }
  for (int64_t task = 1; task < tasks; ++task) {
    const float* __restrict part = partials + task * stride;
    for (int64_t j = 0; j < columns; ++j) total[j] += part[j];
  }
  store_block(dtype, total, out, columns);
}

}  // namespace dsk
