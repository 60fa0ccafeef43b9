// The threads of a grid over rows, and over the units of each row: bytes, words or eights of elements.
#pragma once

#include "gpu/gpu.h"
#include "team.h"
#include "vectors.h"

namespace dsk {

// `lanes` neighbouring threads, a power of two, walk a row; a block has several rows of short ones, and a row of many
// units has several blocks (`y` of the grid) where there are too few rows to fill a device.
struct RowGrid {
  Shape shape;
  int lanes;
};

inline RowGrid row_grid(int64_t rows, int64_t units) {
  constexpr int64_t kEnough = 1024;  // blocks
  int lanes = 1;
  while (lanes < kThreads && lanes < units) lanes *= 2;
  const int threads = lanes < kThreads ? team_threads(rows, lanes) : kThreads;
  const int64_t across = blocks_for(rows, threads / lanes);
  const int64_t parts = max64(1, min64(ceil_div(units, lanes), kEnough / max64(across, 1)));
  return {Shape(dim3(static_cast<unsigned>(across), static_cast<unsigned>(parts), 1), threads), lanes};
}

// Calls body(row, first unit, step) for the rows of this thread.
template <typename Body>
DSK_DEVICE void for_my_rows(int64_t rows, int lanes, const Body& body) {
  const int64_t rows_of_block = blockDim.x / lanes;
  const int64_t lane = threadIdx.x & (lanes - 1);
  for (int64_t row = blockIdx.x * rows_of_block + threadIdx.x / lanes; row < rows; row += gridDim.x * rows_of_block) {
    body(row, static_cast<int64_t>(blockIdx.y) * lanes + lane, static_cast<int64_t>(gridDim.y) * lanes);
  }
}

DSK_HOST_DEVICE bool is_row(int64_t index, int64_t rows) {
  return static_cast<uint64_t>(index) < static_cast<uint64_t>(rows);
}

}  // namespace dsk
