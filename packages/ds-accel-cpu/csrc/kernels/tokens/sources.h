// Who adds to a row: the inverse of an index, each row's sources in rising order.
#pragma once

#include "row_view.h"

namespace dsk {

// Note [Sums in the order of the sources]
// Several sources may add to one row. Were they added as they come, the threads would race; so the index is inverted
// first (a counting sort, which keeps the order), and each row sums its own sources, in rising order, by one thread.
class Sources {
 public:
  static uint64_t bytes(int64_t rows, int64_t entries) {
    return sizeof(int64_t) * static_cast<uint64_t>(max64(rows, 0) + 1 + max64(entries, 0));
  }

  // `index` has `groups` runs of `length` values; run g names rows [g * rows, (g + 1) * rows). Values below 0 add
  // nothing.
  Sources(void* workspace, const int64_t* index, int64_t groups, int64_t length, int64_t rows)
      : starts_(static_cast<int64_t*>(workspace)), entries_(starts_ + groups * rows + 1) {
    const int64_t total = groups * rows;
    for (int64_t row = 0; row <= total; ++row) starts_[row] = 0;
    for (int64_t entry = 0; entry < groups * length; ++entry) {
      if (index[entry] >= 0) ++starts_[entry / length * rows + index[entry]];
    }
    int64_t sum = 0;
    for (int64_t row = 0; row <= total; ++row) {
      const int64_t count = starts_[row];
      starts_[row] = sum;
      sum += count;
    }
    for (int64_t entry = 0; entry < groups * length; ++entry) {
      if (index[entry] >= 0) entries_[starts_[entry / length * rows + index[entry]]++] = entry;
    }
    // Filling moved each start to the next row's; they are read as ends from here on.
  }

  const int64_t* begin(int64_t row) const { return entries_ + (row == 0 ? 0 : starts_[row - 1]); }
  const int64_t* end(int64_t row) const { return entries_ + starts_[row]; }

 private:
  int64_t* starts_;
  int64_t* entries_;
};

}  // namespace dsk
