// Sums in a fixed number of lanes: the same additions in the same order on every level and for any thread count.
#pragma once

#include "common.h"

namespace dsk {

template <typename T, int kLanes>
class Lanes {
 public:
  // Adds value(0) .. value(n - 1); value i goes to lane i mod kLanes.
  template <typename Value>
  DSK_INLINE void add(int64_t n, const Value& value) {
    T sums[kLanes];
    for (int j = 0; j < kLanes; ++j) sums[j] = sums_[j];
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) sums[j] += value(i + j);
    }
    for (int j = 0; i + j < n; ++j) sums[j] += value(i + j);
    for (int j = 0; j < kLanes; ++j) sums_[j] = sums[j];
  }

  // The lanes added pairwise.
  DSK_INLINE T fold() const {
    T folded[kLanes];
    for (int j = 0; j < kLanes; ++j) folded[j] = sums_[j];
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int j = 0; j < width; ++j) folded[j] += folded[j + width];
    }
    return folded[0];
  }

 private:
  alignas(64) T sums_[kLanes] = {};
};

using FloatLanes = Lanes<float, 32>;
using DoubleLanes = Lanes<double, 16>;

}  // namespace dsk
