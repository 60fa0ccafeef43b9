// replace_rows: a copy of some rows among others.
#include "tokens/copies.h"
#include "tokens/rows.h"

namespace dsk {
namespace {

// The first of `taken` indices, which rise, that is not below `row`.
DSK_DEVICE int64_t lower_bound(const int64_t* index, int64_t taken, int64_t row) {
  int64_t low = 0;
  for (int64_t high = taken; low < high;) {
    const int64_t middle = low + (high - low) / 2;
    if (index[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Whether every index names a row and is above the one before it.
DSK_DEVICE bool rises(const ds_replace_rows_args& a) {
  bool good = true;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * gridDim.y * blockDim.x;
  const int64_t thread = (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t m = thread; m < a.batch * a.taken; m += threads) {
    good &= is_row(a.index[m], a.rows) && (m % a.taken == 0 || a.index[m - 1] < a.index[m]);
  }
  return good;
}

// Each row of y once, from base or, where the index names it, from x.
template <typename Unit>
__global__ void __launch_bounds__(kThreads, 3) replace(ds_replace_rows_args a, int64_t units, int lanes) {
  if (!rises(a)) report_bad_index();
  for_my_rows(a.batch * a.rows, lanes, [&](int64_t to, int64_t first, int64_t step) {
    const int64_t b = to / a.rows;
    const int64_t row = to - b * a.rows;
    const int64_t* index = a.index + b * a.taken;
    const int64_t m = lower_bound(index, a.taken, row);
    Unit* y = static_cast<Unit*>(a.y) + to * units;
    if (m == a.taken || index[m] != row) {
      copy_units(y, static_cast<const Unit*>(a.base) + to * units, first, step, units);
    } else if (a.x != nullptr) {
      copy_units(y, static_cast<const Unit*>(a.x) + (b * a.taken + m) * units, first, step, units);
    } else {
      for (int64_t i = first; i < units; i += step) y[i] = Unit();
    }
  });
}

}  // namespace

int32_t replace_rows(const void* arguments, const ds_exec* exec) {
  const ds_replace_rows_args* a = static_cast<const ds_replace_rows_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->row_bytes < 0) return DS_BAD_ARGUMENT;
  const int64_t rows = a->batch * max64(a->rows, a->taken);  // without rows, indices are still looked at
  if (rows == 0) return DS_OK;
  const uintptr_t together =
      bits_of_address(a->base) | bits_of_address(a->x) | bits_of_address(a->y) | static_cast<uintptr_t>(a->row_bytes);
  return with_unit(together, [&](auto unit) -> int32_t {
    using Unit = decltype(unit);
    const int64_t units = a->row_bytes / static_cast<int64_t>(sizeof(Unit));
    const RowGrid grid = row_grid(rows, units);
    return launch(exec, grid.shape, replace<Unit>, *a, units, grid.lanes);
  });
}

}  // namespace dsk
