// gather_rows: rows copied as they are.
#include "tokens/copies.h"
#include "tokens/rows.h"

namespace dsk {
namespace {

template <typename Unit>
__global__ void __launch_bounds__(kThreads) gather(ds_gather_rows_args a, int64_t units, int lanes) {
  for_my_rows(a.batch * a.taken, lanes, [&](int64_t row, int64_t first, int64_t step) {
    const int64_t from = a.index[row];
    if (!is_row(from, a.rows)) {
      if (first == 0) report_bad_index();
      return;
    }
    const Unit* x = static_cast<const Unit*>(a.x) + (row / a.taken * a.rows + from) * units;
    copy_units(static_cast<Unit*>(a.y) + row * units, x, first, step, units);
  });
}

}  // namespace

int32_t gather_rows(const void* arguments, const ds_exec* exec) {
  const ds_gather_rows_args* a = static_cast<const ds_gather_rows_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->row_bytes < 0) return DS_BAD_ARGUMENT;
  const int64_t rows = a->batch * a->taken;
  if (rows == 0) return DS_OK;
  const uintptr_t together = bits_of_address(a->x) | bits_of_address(a->y) | static_cast<uintptr_t>(a->row_bytes);
  return with_unit(together, [&](auto unit) -> int32_t {
    using Unit = decltype(unit);
    const int64_t units = a->row_bytes / static_cast<int64_t>(sizeof(Unit));
    const RowGrid grid = row_grid(rows, units);
    return launch(exec, grid.shape, gather<Unit>, *a, units, grid.lanes);
  });
}

}  // namespace dsk
