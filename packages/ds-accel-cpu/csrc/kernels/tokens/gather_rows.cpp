// gather_rows and replace_rows: rows copied as they are.
#include "row_view.h"
#include "tokens/rows.h"

namespace dsk {
namespace {

void copy_row(void* to, int64_t to_row, const void* from, int64_t from_row, int64_t bytes) {
  std::memcpy(at(to, to_row, bytes), at(from, from_row, bytes), static_cast<size_t>(bytes));
}

// Whether the indices of each batch name rows and rise strictly.
bool rise(const int64_t* index, int64_t batch, int64_t taken, int64_t rows) {
  for (int64_t b = 0; b < batch; ++b) {
    int64_t above = -1;
    for (int64_t m = 0; m < taken; ++m) {
      const int64_t value = index[b * taken + m];
      if (value <= above || value >= rows) return false;
      above = value;
    }
  }
  return true;
}

// The rows [first, end) of a batch, each from base or, where the index names it, from x.
void replace_range(const ds_replace_rows_args& a, int64_t b, int64_t first, int64_t end) {
  const int64_t* index = a.index + b * a.taken;
  int64_t m = 0;
  for (int64_t high = a.taken; m < high;) {  // the first index that is not below `first`
    const int64_t middle = m + (high - m) / 2;
    if (index[middle] < first) {
      m = middle + 1;
    } else {
      high = middle;
    }
  }
  for (int64_t row = first; row < end; ++row) {
    const int64_t to = b * a.rows + row;
    if (m == a.taken || index[m] != row) {
      copy_row(a.y, to, a.base, to, a.row_bytes);
      continue;
    }
    if (a.x != nullptr) {
      copy_row(a.y, to, a.x, b * a.taken + m, a.row_bytes);
    } else {
      std::memset(at(a.y, to, a.row_bytes), 0, static_cast<size_t>(a.row_bytes));
    }
    ++m;
  }
}

}  // namespace

int32_t gather_rows(const void* arguments, const ds_exec* exec) {
  const ds_gather_rows_args* a = static_cast<const ds_gather_rows_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->row_bytes < 0) return DS_BAD_ARGUMENT;
  if (!all_rows_exist(a->index, a->batch * a->taken, a->rows)) return DS_INDEX_OUT_OF_RANGE;
  if (a->row_bytes == 0) return DS_OK;
  for_rows(exec, a->batch * a->taken, a->row_bytes,
           [a](int64_t row) { copy_row(a->y, row, a->x, row / a->taken * a->rows + a->index[row], a->row_bytes); });
  return DS_OK;
}

int32_t replace_rows(const void* arguments, const ds_exec* exec) {
  const ds_replace_rows_args* a = static_cast<const ds_replace_rows_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->rows < 0 || a->taken < 0 || a->row_bytes < 0) return DS_BAD_ARGUMENT;
  if (!rise(a->index, a->batch, a->taken, a->rows)) return DS_INDEX_OUT_OF_RANGE;
  if (a->row_bytes == 0) return DS_OK;
  const int64_t per_task = min64(max64(a->rows, 1), rows_per_task(exec, a->batch * a->rows, a->row_bytes));
  const int64_t tasks = ceil_div(a->rows, per_task);
  parallel_for(exec, a->batch * tasks, [a, per_task, tasks](int64_t task) {
    const int64_t first = task % tasks * per_task;
    replace_range(*a, task / tasks, first, min64(a->rows, first + per_task));
  });
  return DS_OK;
}

}  // namespace dsk
