// The forward kernel of both normalizations.
//
// Memory traffic: x read and y written once, 1.0 times the minimum, and the same with a residual (x and residual read,
// total and y written). layer_norm reads what a row has beyond 2,048 packs of 16 bytes three times, rms_norm twice.
// Weights come from the caches.
#pragma once

#include "row.h"

namespace dsk {

// Arguments of either op; bias and mean are NULL for rms_norm.
struct NormForward {
  int32_t weight_dtype;
  float eps;
  int64_t rows;
  int64_t columns;
  const void* x;
  const void* weight;
  const void* bias;
  void* y;
  float* mean;
  float* rstd;
  const void* residual;
  void* total;
  bool vector;
};

// Packs of x, or of the sum that the call makes: rounded and stored.
template <typename T, int n>
DSK_DEVICE void first_read(const NormForward& a, int64_t row, int64_t column, int64_t step, int64_t columns,
                           RowPack<T> (&packs)[n]) {
  const int64_t begin = row * a.columns;
  load_packs(static_cast<const T*>(a.x) + begin, column, step, columns, a.vector, packs);
  if (a.residual == nullptr) return;
  RowPack<T> more[n];
  load_packs(static_cast<const T*>(a.residual) + begin, column, step, columns, a.vector, more);
#pragma unroll
  for (int k = 0; k < n; ++k) {
    RowPack<T> total;
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) total.set_value(i, packs[k].value(i) + more[k].value(i));
    packs[k] = total;
    store_pack(total, static_cast<T*>(a.total) + begin, column + k * step, columns, a.vector);
  }
}

// The same packs again.
template <typename T, int n>
DSK_DEVICE void read_again(const NormForward& a, int64_t row, int64_t column, int64_t step, int64_t columns,
                           RowPack<T> (&packs)[n]) {
  const T* source = static_cast<const T*>(a.residual != nullptr ? a.total : a.x);
  load_packs(source + row * a.columns, column, step, columns, a.vector, packs);
}

// The sum of value(x) over packs; `value` of what is behind the end of the row counts only if it is not 0.
template <typename T, int n, typename Value>
DSK_DEVICE float sum_packs(const RowPack<T> (&packs)[n], const Value& value) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) sum += value(packs[k].value(i));
  }
  return sum;
}

// The sum of (x - mean)^2 over packs.
template <typename T, int n>
DSK_DEVICE float sum_centered(const RowPack<T> (&packs)[n], float mean, int64_t column, int64_t step, int64_t columns) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int valid = valid_elements<T>(column + k * step, columns);
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) {
      const float centered = packs[k].value(i) - mean;
      sum += i < valid ? centered * centered : 0.0f;
    }
  }
  return sum;
}

template <typename T, bool centered, int n>
DSK_DEVICE void write_packs(const NormForward& a, int64_t row, int64_t column, int64_t step, int64_t columns,
                            float mean, float rstd, const RowPack<T> (&packs)[n]) {
  constexpr int kSize = RowPack<T>::kSize;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    const int valid = valid_elements<T>(first, columns);
    float weight[kSize];
    float y[kSize];
    load_floats(a.weight_dtype, a.weight, first, valid, a.vector, weight);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float x = packs[k].value(i);
      y[i] = (centered ? x - mean : x) * rstd * weight[i];
    }
    if (centered && a.bias != nullptr) {
      float bias[kSize];
      load_floats(a.weight_dtype, a.bias, first, valid, a.vector, bias);
#pragma unroll
      for (int i = 0; i < kSize; ++i) y[i] += bias[i];
    }
    RowPack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) pack.set_value(i, y[i]);
    store_pack(pack, static_cast<T*>(a.y) + row * a.columns, first, columns, a.vector);
  }
}

template <typename T, bool centered, typename Row>
__global__ void __launch_bounds__(Row::kBlock, Row::kResident) norm_forward_kernel(NormForward a) {
  using Group = typename Row::Group;
  constexpr int64_t kStep = int64_t{Row::kThreads} * RowPack<T>::kSize;
  const int64_t first = int64_t{Group::lane()} * RowPack<T>::kSize;
  const float count = static_cast<float>(a.columns);
  const auto term = [](float x) { return centered ? x : x * x; };
  DSK_ROWS(Group, row, a.rows) {
    const int64_t columns = row_columns(row, a.rows, a.columns);
    const int64_t behind = Row::kLonger ? first + Row::kPacks * kStep : columns;  // of what is kept
    RowPack<T> kept[Row::kPacks];
    RowPack<T> more[1];
    first_read(a, row, first, kStep, columns, kept);
    float sum = sum_packs(kept, term);
    for (int64_t column = behind; column < columns; column += kStep) {
      first_read(a, row, column, kStep, columns, more);
      sum += sum_packs(more, term);
    }
    float mean = 0.0f;
    float squares = Group::fold(sum, Add{});
    if (centered) {
      mean = squares / count;
      sum = sum_centered(kept, mean, first, kStep, columns);
      for (int64_t column = behind; column < columns; column += kStep) {
        read_again(a, row, column, kStep, columns, more);
        sum += sum_centered(more, mean, column, kStep, columns);
      }
      squares = Group::fold(sum, Add{});
    }
    const float rstd = 1.0f / sqrtf(squares / count + a.eps);
    if (first == 0 && columns > 0) {
      if (centered) a.mean[row] = mean;
      a.rstd[row] = rstd;
    }
    write_packs<T, centered>(a, row, first, kStep, columns, mean, rstd, kept);
    for (int64_t column = behind; column < columns; column += kStep) {
      read_again(a, row, column, kStep, columns, more);
      write_packs<T, centered>(a, row, column, kStep, columns, mean, rstd, more);
    }
  }
}

// Runs the kernel for the dtype of x.
template <bool centered>
int32_t norm_forward(NormForward a, int32_t dtype, const ds_exec* exec) {
  if (a.rows == 0 || a.columns == 0) return DS_OK;
  return with_float_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    a.vector = whole_packs<T>(a.columns, a.x, a.y, a.weight, a.bias, a.residual, a.total);
    using Narrow = RowShape<kRowWarp, 4>;
    return with_row_shape<T, Narrow, RowShape<256, 4>, RowShape<512, 4, true>>(a.columns, [&](auto shape) {
      using Row = decltype(shape);
      return launch(exec, Shape(Row::blocks(a.rows), Row::kBlock), norm_forward_kernel<T, centered, Row>, a);
    });
  });
}

}  // namespace dsk
