// The gradients of gated_activation, for two tensors and for the halves of one.
//
// Memory traffic: dy, gate and up read and dgate and dup written once, 1.0 times the minimum.
#include "activation/gated.h"
#include "activation/rows.h"

namespace dsk {
namespace {

template <typename T, typename Kind>
__global__ void __launch_bounds__(kThreads)
    gated_backward_kernel(ds_gated_activation_backward_args a, PackGrid grid, bool vector) {
  DSK_GRID_STRIDE(number, grid.count) {
    const int64_t row = quotient(number, grid.per_row);
    const int64_t column = (number - row * grid.per_row) * RowPack<T>::kSize;
    const bool whole = vector && column + RowPack<T>::kSize <= grid.columns;
    RowPack<T> dy[1];
    RowPack<T> gate[1];
    RowPack<T> up[1];
    load_packs(static_cast<const T*>(a.dy) + row * grid.columns, column, 0, grid.columns, whole, dy);
    load_packs(static_cast<const T*>(a.gate) + row * a.gate_stride, column, 0, grid.columns, whole, gate);
    load_packs(static_cast<const T*>(a.up) + row * a.up_stride, column, 0, grid.columns, whole, up);
    RowPack<T> dgate;
    RowPack<T> dup;
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) {
      const Point point = Kind::point(gate[0].value(i));
      dgate.set_value(i, dy[0].value(i) * up[0].value(i) * point.slope);
      dup.set_value(i, dy[0].value(i) * point.value);
    }
    store_pack(dgate, static_cast<T*>(a.dgate) + row * a.dgate_stride, column, grid.columns, whole);
    store_pack(dup, static_cast<T*>(a.dup) + row * a.dup_stride, column, grid.columns, whole);
  }
}

}  // namespace

int32_t gated_activation_backward(const void* arguments, const ds_exec* exec) {
  const ds_gated_activation_backward_args* a = static_cast<const ds_gated_activation_backward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return with_kind(a->kind, [&](auto kind) -> int32_t {
    using Kind = typename decltype(kind)::type;
    return with_float_type(a->dtype, [&](auto tag) -> int32_t {
      using T = typename decltype(tag)::type;
      const PackGrid grid = pack_grid<T>(a->rows, a->columns);
      const bool vector =
          rows_aligned<T>(a->dy, a->rows, a->columns) && rows_aligned<T>(a->gate, a->rows, a->gate_stride) &&
          rows_aligned<T>(a->up, a->rows, a->up_stride) && rows_aligned<T>(a->dgate, a->rows, a->dgate_stride) &&
          rows_aligned<T>(a->dup, a->rows, a->dup_stride);
      return launch(exec, Shape(blocks_for(grid.count, kThreads), kThreads), gated_backward_kernel<T, Kind>, *a, grid,
                    vector);
    });
  });
}

}  // namespace dsk
