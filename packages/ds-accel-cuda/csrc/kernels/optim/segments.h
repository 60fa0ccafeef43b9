// Segments of a flat tensor, given in host memory, cut into units from their starts: what LAMB's norms are sums over.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

constexpr int64_t kSumUnit = 64 * 1024;  // as ds_kernel.h says

// Note [Segments on the device]
// The bounds are in host memory, and a call may neither wait for a copy nor leave one running from memory that the
// caller takes back. So they travel as arguments of kernels, which a launch copies, into the workspace.
constexpr int kWords = 448;  // of eight bytes; arguments of a kernel may have 4 KiB
struct Words {
  int64_t values[kWords];
};

static __global__ void __launch_bounds__(64) write_words(const __grid_constant__ Words words, int count, int64_t* to) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) to[i] = words.values[i];
}

// Segments as kernels see them: [first, stop) of segment i in bounds[2i], bounds[2i + 1], its first unit in starts[i].
struct Segments {
  const int64_t* bounds;
  const int64_t* starts;  // count + 1
  int64_t count;
};

struct Span {
  int64_t segment;
  int64_t first;
  int64_t stop;
};

DSK_DEVICE Span span_of(const Segments& segments, int64_t unit) {
  int64_t low = 0;
  int64_t high = segments.count - 1;
  while (low < high) {  // the last segment that begins at or before the unit and has one
    const int64_t middle = (low + high + 1) / 2;
    if (segments.starts[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const int64_t first = segments.bounds[2 * low] + (unit - segments.starts[low]) * kSumUnit;
  return {low, first, min64(first + kSumUnit, segments.bounds[2 * low + 1])};
}

inline int64_t units_of(const int64_t* bounds, int64_t i) {
  return ceil_div(max64(bounds[2 * i + 1] - bounds[2 * i], 0), kSumUnit);
}

inline int64_t total_units(const int64_t* bounds, int64_t count) {
  int64_t units = 0;
  for (int64_t i = 0; i < count; ++i) units += units_of(bounds, i);
  return units;
}

template <typename Args>
bool bounds_fit(const Args& a) {
  if (a.segment_count < 0) return false;
  for (int64_t i = 0; i < a.segment_count; ++i) {
    const int64_t start = a.bounds[2 * i];
    const int64_t stop = a.bounds[2 * i + 1];
    if (start < 0 || stop < start || stop > a.numel) return false;
  }
  return true;
}

// Of the workspace, at its beginning.
inline uint64_t segments_bytes(int64_t count) { return (3 * static_cast<uint64_t>(count) + 1) * sizeof(int64_t); }

// Writes the segments into the workspace, and says where.
inline int32_t place_segments(const ds_exec* exec, const int64_t* bounds, int64_t count, Segments* segments) {
  int64_t* const words = static_cast<int64_t*>(exec->workspace);
  *segments = {words + count + 1, words, count};
  const int64_t total = 3 * count + 1;
  int64_t start = 0;
  Words batch;
  for (int64_t first = 0; first < total; first += kWords) {
    const int size = static_cast<int>(min64(kWords, total - first));
    for (int i = 0; i < size; ++i) {
      const int64_t word = first + i;
      batch.values[i] = word <= count ? start : bounds[word - count - 1];
      if (word < count) start += units_of(bounds, word);
    }
    const int32_t status = launch(exec, Shape(1, 64), write_words, batch, size, words + first);
    if (status != DS_OK) return status;
  }
  return DS_OK;
}

}  // namespace dsk
