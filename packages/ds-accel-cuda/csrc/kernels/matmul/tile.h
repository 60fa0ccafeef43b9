// The tile of y that a block works on where there are many rows, and what of it is a thread's.
#pragma once

#include "matmul/weights.h"

namespace dsk::matmul {

constexpr int kTileThreads = 128;
constexpr int kTileOutputs = 64;
constexpr int kThreadOutputs = 4;
constexpr int kOutputThreads = kTileOutputs / kThreadOutputs;  // neighbouring threads, for neighbouring outputs

template <int kTileRows>
constexpr int kThreadRows = kTileRows * kOutputThreads / kTileThreads;

DSK_DEVICE int first_output() { return static_cast<int>(threadIdx.x) % kOutputThreads * kThreadOutputs; }
template <int kTileRows>
DSK_DEVICE int first_row() {
  return static_cast<int>(threadIdx.x) / kOutputThreads * kThreadRows<kTileRows>;
}

template <int kTileRows>
inline Shape tile_shape(const ds_linear_args& a) {
  const dim3 grid(static_cast<unsigned>(ceil_div(a.outputs, kTileOutputs)),
                  static_cast<unsigned>(min64(ceil_div(a.rows, kTileRows), 65535)));
  return Shape(grid, kTileThreads);
}

// Unit `i` of those that a thread moves, of `width` by something: neighbouring threads have neighbouring places.
DSK_DEVICE int unit_place(int i, int width) { return (static_cast<int>(threadIdx.x) + i * kTileThreads) % width; }
DSK_DEVICE int unit_line(int i, int width) { return (static_cast<int>(threadIdx.x) + i * kTileThreads) / width; }

// Four neighbours that shared memory gives or takes at once.
template <typename T>
using Four = Pack<T, 4>;

// kCount neighbours of a line of fours.
template <int kCount, typename T, int kFours>
DSK_DEVICE void read_line(const Four<T> (&line)[kFours], int place, T (&out)[kCount]) {
  static_assert(kCount % 4 == 0, "whole fours");
#pragma unroll
  for (int i = 0; i < kCount / 4; ++i) {
    const Four<T> four = line[place / 4 + i];
#pragma unroll
    for (int j = 0; j < 4; ++j) out[4 * i + j] = four.values[j];
  }
}

}  // namespace dsk::matmul
