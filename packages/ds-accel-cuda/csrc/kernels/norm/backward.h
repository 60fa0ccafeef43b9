// The backward kernels of both normalizations.
//
// Note [Gradients of weights]
// A group of threads takes every G-th row and keeps its part of the weights' gradients in registers; a second kernel
// adds the G parts in order. G depends on the shape alone, so neither the device nor the schedule shows in the result.
// Rows too long for that go through one kernel for dx and another for the parts.
//
// Memory traffic: dy and x read and dx written once. Each part is a row of float32 written and read back, mostly from
// the second-level cache, for at least four rows: at most 1.34 times the minimum for 16-bit x, 1.17 for float32, and
// 1.00 from some thousands of rows on. Rows too long, from 2,049 packs of 16 bytes (layer_norm: 1,025): 1.67 times up
// to 2,048 packs, and what a row has beyond them 2.33 times.
#pragma once

#include "row.h"

namespace dsk {

// Arguments of either op; mean and dbias are NULL for rms_norm.
struct NormBackward {
  int32_t weight_dtype;
  int64_t rows;
  int64_t columns;
  const void* dy;
  const void* x;
  const void* weight;
  const float* mean;
  const float* rstd;
  void* dx;
  void* dweight;
  void* dbias;
  const void* dtotal;
  bool vector;
};

// The parts: [groups, columns] of the gradient of the weight, then the same of the bias.
struct Parts {
  float* base;
  int64_t groups;
};

// One row's statistics, and the projections of its weighted gradient on the normalized row and on ones.
struct RowState {
  float mean;
  float rstd;
  float along;
  float shift;
};

template <bool centered>
DSK_DEVICE RowState row_state(const NormBackward& a, int64_t row) {
  if (row >= a.rows) return {0.0f, 0.0f, 0.0f, 0.0f};
  return {centered ? a.mean[row] : 0.0f, a.rstd[row], 0.0f, 0.0f};
}

template <typename T, bool centered, int n>
DSK_DEVICE void add_projections(const NormBackward& a, int64_t column, int64_t step, int64_t columns, RowState s,
                                const RowPack<T> (&x)[n], const RowPack<T> (&dy)[n], float (&sums)[centered ? 2 : 1]) {
  constexpr int kSize = RowPack<T>::kSize;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    float weight[kSize];
    load_floats(a.weight_dtype, a.weight, first, valid_elements<T>(first, columns), a.vector, weight);
#pragma unroll
    for (int i = 0; i < kSize; ++i) {  // behind the end of a row the weights are 0
      const float normalized = (centered ? x[k].value(i) - s.mean : x[k].value(i)) * s.rstd;
      const float weighted = dy[k].value(i) * weight[i];
      sums[0] += weighted * normalized;
      if constexpr (centered) sums[1] += weighted;
    }
  }
}

template <typename T, bool centered, int n>
DSK_DEVICE void write_gradient(const NormBackward& a, int64_t row, int64_t column, int64_t step, int64_t columns,
                               RowState s, const RowPack<T> (&x)[n], const RowPack<T> (&dy)[n]) {
  constexpr int kSize = RowPack<T>::kSize;
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    float weight[kSize];
    load_floats(a.weight_dtype, a.weight, first, valid_elements<T>(first, columns), a.vector, weight);
    RowPack<T> more[1];
    if (a.dtotal != nullptr) {
      load_packs(static_cast<const T*>(a.dtotal) + row * a.columns, first, 0, columns, a.vector, more);
    }
    RowPack<T> pack;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      const float normalized = (centered ? x[k].value(i) - s.mean : x[k].value(i)) * s.rstd;
      float dx = dy[k].value(i) * weight[i] - normalized * s.along;
      dx = (centered ? dx - s.shift : dx) * s.rstd;
      pack.set_value(i, a.dtotal != nullptr ? dx + more[0].value(i) : dx);
    }
    store_pack(pack, static_cast<T*>(a.dx) + row * a.columns, first, columns, a.vector);
  }
}

// The parts of the weights' gradients that a thread holds.
template <typename T, bool centered, int n>
struct Gradients {
  static constexpr int kSize = RowPack<T>::kSize;
  float dweight[n][kSize] = {};
  float dbias[centered ? n : 1][kSize] = {};

  DSK_DEVICE void add(RowState s, const RowPack<T> (&x)[n], const RowPack<T> (&dy)[n]) {
#pragma unroll
    for (int k = 0; k < n; ++k) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const float gradient = dy[k].value(i);
        dweight[k][i] += gradient * ((centered ? x[k].value(i) - s.mean : x[k].value(i)) * s.rstd);
        if (centered) dbias[k][i] += gradient;
      }
    }
  }
  DSK_DEVICE void store(Parts parts, int64_t group, int64_t column, int64_t step, int64_t columns) const {
    float* const to = parts.base + group * columns;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const int64_t first = column + k * step;
      const int valid = valid_elements<T>(first, columns);
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        if (i < valid) to[first + i] = dweight[k][i];
        if (centered && i < valid) to[parts.groups * columns + first + i] = dbias[k][i];
      }
    }
  }
};

// dx of every row, and the parts unless rows may be longer than a group holds.
template <typename T, bool centered, typename Row>
__global__ void __launch_bounds__(Row::kBlock) norm_backward_kernel(NormBackward a, Parts parts) {
  using Group = typename Row::Group;
  constexpr int64_t kStep = int64_t{Row::kThreads} * RowPack<T>::kSize;
  const int64_t first = int64_t{Group::lane()} * RowPack<T>::kSize;
  const float count = static_cast<float>(a.columns);
  Gradients<T, centered, Row::kLonger ? 1 : Row::kPacks> gradients;
  DSK_ROWS(Group, row, a.rows) {
    const int64_t columns = row_columns(row, a.rows, a.columns);
    const int64_t behind = Row::kLonger ? first + Row::kPacks * kStep : columns;
    const T* const x_row = static_cast<const T*>(a.x) + row * a.columns;
    const T* const dy_row = static_cast<const T*>(a.dy) + row * a.columns;
    RowPack<T> x[Row::kPacks];
    RowPack<T> dy[Row::kPacks];
    RowPack<T> more_x[1];
    RowPack<T> more_dy[1];
    load_packs(x_row, first, kStep, columns, a.vector, x);
    load_packs(dy_row, first, kStep, columns, a.vector, dy);
    RowState state = row_state<centered>(a, row);
    float sums[centered ? 2 : 1] = {};
    add_projections<T, centered>(a, first, kStep, columns, state, x, dy, sums);
    if constexpr (!Row::kLonger) gradients.add(state, x, dy);
    for (int64_t column = behind; column < columns; column += kStep) {
      load_packs(x_row, column, kStep, columns, a.vector, more_x);
      load_packs(dy_row, column, kStep, columns, a.vector, more_dy);
      add_projections<T, centered>(a, column, kStep, columns, state, more_x, more_dy, sums);
    }
    Group::fold(sums, Add{});
    state.along = sums[0] / count;
    if constexpr (centered) state.shift = sums[1] / count;
    write_gradient<T, centered>(a, row, first, kStep, columns, state, x, dy);
    for (int64_t column = behind; column < columns; column += kStep) {
      load_packs(x_row, column, kStep, columns, a.vector, more_x);
      load_packs(dy_row, column, kStep, columns, a.vector, more_dy);
      write_gradient<T, centered>(a, row, column, kStep, columns, state, more_x, more_dy);
    }
  }
  if constexpr (!Row::kLonger) gradients.store(parts, Group::number(), first, kStep, a.columns);
}

// The parts of long rows: a block takes a stretch of columns and every G-th row.
constexpr int kColumnThreads = 128;

template <typename T, bool centered>
__global__ void __launch_bounds__(kColumnThreads) norm_parts_kernel(NormBackward a, Parts parts) {
  const int64_t column = (int64_t{blockIdx.x} * kColumnThreads + threadIdx.x) * RowPack<T>::kSize;
  Gradients<T, centered, 1> gradients;
  for (int64_t row = blockIdx.y; row < a.rows; row += gridDim.y) {
    RowPack<T> x[1];
    RowPack<T> dy[1];
    load_packs(static_cast<const T*>(a.x) + row * a.columns, column, 0, a.columns, a.vector, x);
    load_packs(static_cast<const T*>(a.dy) + row * a.columns, column, 0, a.columns, a.vector, dy);
    gradients.add(row_state<centered>(a, row), x, dy);
  }
  gradients.store(parts, blockIdx.y, column, 0, a.columns);
}

// The sum of the parts of one vector, in order: kSumStripes threads a column.
constexpr int kSumColumns = 32;
constexpr int kSumStripes = 8;

template <typename W>
__global__ void __launch_bounds__(kSumColumns* kSumStripes)
    norm_sum_kernel(const float* parts, int64_t groups, int64_t columns, W* out) {
  DSK_SHARED(float, sums, [kSumStripes * kSumColumns]);
  const int lane = static_cast<int>(threadIdx.x) % kSumColumns;
  const int stripe = static_cast<int>(threadIdx.x) / kSumColumns;
  const int64_t column = int64_t{blockIdx.x} * kSumColumns + lane;
  float sum = 0.0f;
  if (column < columns) {
#pragma unroll 8
    for (int64_t group = stripe; group < groups; group += kSumStripes) sum += parts[group * columns + column];
  }
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (stripe != 0 || column >= columns) return;
#pragma unroll
  for (int j = 1; j < kSumStripes; ++j) sum += sums[j * kSumColumns + lane];
  out[column] = from_float<W>(sum);
}

// Calls body(shape) with how a row is held; layer_norm has twice the gradients in registers.
template <typename T, bool centered, typename Body>
int32_t with_backward_shape(int64_t columns, const Body& body) {
  return with_row_shape<T, RowShape<kRowWarp, 4>, RowShape<256, 2>, RowShape<512, centered ? 2 : 4>,
                        RowShape<512, 4, true>>(columns, body);
}

// How many parts: enough to fill a device, each of at least four rows.
template <typename Row>
int64_t part_groups(int64_t rows) {
  const int64_t most = Row::kLonger ? 64 : Row::kThreads == kRowWarp ? 2048 : 131072 / Row::kThreads;
  const int64_t groups = min64(max64(ceil_div(rows, 4), 1), most);
  return Row::kLonger ? groups : ceil_div(groups, Row::Group::kPerBlock) * Row::Group::kPerBlock;
}

// Floats of all parts.
template <typename T, bool centered>
int64_t part_floats(int64_t rows, int64_t columns) {
  int64_t groups = 0;
  with_backward_shape<T, centered>(columns, [&groups, rows](auto shape) -> int32_t {
    groups = part_groups<decltype(shape)>(rows);
    return DS_OK;
  });
  return groups * columns * (centered ? 2 : 1);
}

template <bool centered>
uint64_t norm_backward_workspace(int64_t rows, int64_t columns, int32_t dtype) {
  int64_t floats = 0;
  with_float_type(dtype, [&floats, rows, columns](auto tag) -> int32_t {
    floats = part_floats<typename decltype(tag)::type, centered>(rows, columns);
    return DS_OK;
  });
  return static_cast<uint64_t>(floats) * sizeof(float);
}

// Both gradients of weights from their parts.
inline int32_t sum_parts(const NormBackward& a, Parts parts, const ds_exec* exec) {
  return with_float_type(a.weight_dtype, [&](auto tag) -> int32_t {
    using W = typename decltype(tag)::type;
    const Shape shape(static_cast<unsigned>(ceil_div(a.columns, kSumColumns)), kSumColumns * kSumStripes);
    void* const outs[] = {a.dweight, a.dbias};
    for (int64_t j = 0; j < 2; ++j) {
      if (outs[j] == nullptr) continue;
      const int32_t status = launch(exec, shape, norm_sum_kernel<W>, parts.base + j * parts.groups * a.columns,
                                    parts.groups, a.columns, static_cast<W*>(outs[j]));
      if (status != DS_OK) return status;
    }
    return DS_OK;
  });
}

template <typename T, bool centered, typename Row>
int32_t launch_backward(const NormBackward& a, const ds_exec* exec) {
  const Parts parts = {static_cast<float*>(exec->workspace), part_groups<Row>(a.rows)};
  const unsigned blocks = Row::blocks(Row::kLonger ? a.rows : parts.groups);
  int32_t status = launch(exec, Shape(blocks, Row::kBlock), norm_backward_kernel<T, centered, Row>, a, parts);
  if (Row::kLonger && status == DS_OK) {
    const int64_t stretches = ceil_div(a.columns, kColumnThreads * RowPack<T>::kSize);
    const dim3 grid(static_cast<unsigned>(stretches), static_cast<unsigned>(parts.groups));
    status = launch(exec, Shape(grid, kColumnThreads), norm_parts_kernel<T, centered>, a, parts);
  }
  return status == DS_OK ? sum_parts(a, parts, exec) : status;
}

template <bool centered>
int32_t norm_backward(NormBackward a, int32_t dtype, const ds_exec* exec) {
  if (a.columns == 0) return DS_OK;
  return with_float_type(dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    a.vector = whole_packs<T>(a.columns, a.dy, a.x, a.weight, a.dx, a.dtotal);
    return with_backward_shape<T, centered>(
        a.columns, [&](auto shape) -> int32_t { return launch_backward<T, centered, decltype(shape)>(a, exec); });
  });
}

}  // namespace dsk
