// softmax_backward: dx = (dy - sum(dy * y)) * y * scale of each row.
//
// Memory traffic: dy and y read and dx written once, 1.0 times the minimum; what a row has beyond 2,048 packs of 16
// bytes is read twice.
#include "activation/rows.h"
#include "row.h"

namespace dsk {
namespace {

template <typename T, int n>
DSK_DEVICE float sum_products(const RowPack<T> (&dy)[n], const RowPack<T> (&y)[n]) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) sum += dy[k].value(i) * y[k].value(i);
  }
  return sum;
}

template <typename T, int n>
DSK_DEVICE void write_packs(T* dx, int64_t column, int64_t step, int64_t columns, bool vector, float along, float scale,
                            const RowPack<T> (&dy)[n], const RowPack<T> (&y)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    RowPack<T> pack;
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) pack.set_value(i, (dy[k].value(i) - along) * y[k].value(i) * scale);
    store_pack(pack, dx, first, columns, vector);
  }
}

template <typename T, typename Row>
__global__ void __launch_bounds__(Row::kBlock) softmax_backward_kernel(ds_softmax_backward_args a, bool vector) {
  using Group = typename Row::Group;
  constexpr int64_t kStep = int64_t{Row::kThreads} * RowPack<T>::kSize;
  const int64_t first = int64_t{Group::lane()} * RowPack<T>::kSize;
  const float scale = static_cast<float>(a.scale);
  DSK_ROWS(Group, row, a.rows) {
    const int64_t columns = row_columns(row, a.rows, a.columns);
    const int64_t behind = Row::kLonger ? first + Row::kPacks * kStep : columns;
    const T* const dy_row = static_cast<const T*>(a.dy) + row * a.columns;
    const T* const y_row = static_cast<const T*>(a.y) + row * a.columns;
    T* const dx_row = static_cast<T*>(a.dx) + row * a.columns;
    RowPack<T> dy[Row::kPacks];
    RowPack<T> y[Row::kPacks];
    RowPack<T> more_dy[1];
    RowPack<T> more_y[1];
    load_packs(dy_row, first, kStep, columns, vector, dy);
    load_packs(y_row, first, kStep, columns, vector, y);
    float sum = sum_products(dy, y);
    for (int64_t column = behind; column < columns; column += kStep) {
      load_packs(dy_row, column, kStep, columns, vector, more_dy);
      load_packs(y_row, column, kStep, columns, vector, more_y);
      sum += sum_products(more_dy, more_y);
    }
    const float along = Group::fold(sum, Add{});
    write_packs(dx_row, first, kStep, columns, vector, along, scale, dy, y);
    for (int64_t column = behind; column < columns; column += kStep) {
      load_packs(dy_row, column, kStep, columns, vector, more_dy);
      load_packs(y_row, column, kStep, columns, vector, more_y);
      write_packs(dx_row, column, kStep, columns, vector, along, scale, more_dy, more_y);
    }
  }
}

}  // namespace

int32_t softmax_backward(const void* arguments, const ds_exec* exec) {
  const ds_softmax_backward_args* a = static_cast<const ds_softmax_backward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const bool vector = whole_packs<T>(a->columns, a->dy, a->y, a->dx);
    using Narrow = RowShape<kRowWarp, 4>;
    return with_row_shape<T, Narrow, RowShape<256, 4>, RowShape<512, 4, true>>(a->columns, [&](auto shape) -> int32_t {
      using Row = decltype(shape);
      const int64_t rows = a->columns == 0 ? 0 : a->rows;
      return launch(exec, Shape(Row::blocks(rows), Row::kBlock), softmax_backward_kernel<T, Row>, *a, vector);
    });
  });
}

}  // namespace dsk
