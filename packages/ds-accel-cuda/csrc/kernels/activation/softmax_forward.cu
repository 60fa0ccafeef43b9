// softmax_forward: rows in float32, scaled, masked and cut to what a query may see.
//
// Memory traffic: what is seen of x (and of the mask) read and y written once, 1.0 times the minimum; what a row has
// beyond 2,048 packs of 16 bytes is read twice.
#include "activation/rows.h"
#include "exponential.h"
#include "row.h"

namespace dsk {
namespace {

// One row of x, and its row of the mask.
template <typename T>
struct Scores {
  const T* x;
  int64_t mask_first;  // element of the mask that the row begins at
  int64_t seen;        // keys
};

struct Vectors {
  bool x;
  bool mask;
};

template <typename T>
DSK_DEVICE Scores<T> scores_of(const ds_softmax_forward_args& a, int64_t row, int64_t rows) {
  if (row >= rows) return {nullptr, 0, 0};
  const int64_t above = quotient(row, a.queries);
  const int64_t query = row - above * a.queries;
  const int64_t outer = quotient(above, a.middle);
  int64_t seen = a.lengths != nullptr ? min64(a.keys, max64(0, a.lengths[outer])) : a.keys;
  if (a.causal != 0) seen = min64(seen, max64(0, query + 1 + a.keys - a.queries));
  const int64_t mask_first =
      outer * a.mask_outer_stride + (above - outer * a.middle) * a.mask_middle_stride + query * a.mask_query_stride;
  return {static_cast<const T*>(a.x) + row * a.keys, mask_first, seen};
}

// Scaled and masked values of packs at `column`, `column` + step, ...: -inf where nothing is seen.
template <typename T, int n>
DSK_DEVICE void read_values(const ds_softmax_forward_args& a, const Scores<T>& row, int64_t column, int64_t step,
                            Vectors vectors, float (&values)[n][RowPack<T>::kSize]) {
  constexpr int kSize = RowPack<T>::kSize;
  RowPack<T> packs[n];
  load_packs(row.x, column, step, row.seen, vectors.x, packs);
  const float scale = static_cast<float>(a.scale);
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    const int valid = valid_elements<T>(first, row.seen);
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[k][i] = packs[k].value(i) * scale;
    if (a.mask != nullptr && valid > 0) {
      float mask[kSize];
      load_floats(a.mask_dtype, a.mask, row.mask_first + first, valid, vectors.mask, mask);
#pragma unroll
      for (int i = 0; i < kSize; ++i) values[k][i] += mask[i];
    }
#pragma unroll
    for (int i = 0; i < kSize; ++i) values[k][i] = i < valid ? values[k][i] : -INFINITY;
  }
}

template <int n, int size>
DSK_DEVICE float largest_of(const float (&values)[n][size]) {
  float largest = values[0][0];
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < size; ++i) largest = fmaxf(largest, values[k][i]);
  }
  return largest;
}

// A NaN is left out of the largest value, and makes every sum of exponentials NaN.
DSK_DEVICE float reference_of(float largest) { return largest == -INFINITY ? 0.0f : largest; }

// exp(value - reference) of each, in its place; returns their sum.
template <int n, int size>
DSK_DEVICE float exponentials(float (&values)[n][size], float reference) {
  float sum = 0.0f;
#pragma unroll
  for (int k = 0; k < n; ++k) {
#pragma unroll
    for (int i = 0; i < size; ++i) {
      values[k][i] = exp_fused(values[k][i] - reference);
      sum += values[k][i];
    }
  }
  return sum;
}

template <typename T, int n>
DSK_DEVICE void write_values(T* y, int64_t column, int64_t step, int64_t columns, int64_t seen, bool vector,
                             float inverse, const float (&values)[n][RowPack<T>::kSize]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    const int valid = valid_elements<T>(first, seen);
    RowPack<T> pack;
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) pack.set_value(i, i < valid ? values[k][i] * inverse : 0.0f);
    store_pack(pack, y, first, columns, vector);
  }
}

template <typename T, typename Row>
__global__ void __launch_bounds__(Row::kBlock, Row::kResident)
    softmax_kernel(ds_softmax_forward_args a, int64_t rows, Vectors vectors) {
  using Group = typename Row::Group;
  constexpr int kSize = RowPack<T>::kSize;
  constexpr int64_t kStep = int64_t{Row::kThreads} * kSize;
  const int64_t first = int64_t{Group::lane()} * kSize;
  DSK_ROWS(Group, row, rows) {
    const int64_t columns = row_columns(row, rows, a.keys);
    const int64_t behind = Row::kLonger ? first + Row::kPacks * kStep : columns;
    const Scores<T> scores = scores_of<T>(a, row, rows);
    float kept[Row::kPacks][kSize];
    float more[1][kSize];
    read_values(a, scores, first, kStep, vectors, kept);
    // What is not kept: the largest so far, and the sum relative to it, scaled down when a larger value comes.
    // Source: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
    float largest = -INFINITY;
    float sum = 0.0f;
    for (int64_t column = behind; column < scores.seen; column += kStep) {
      read_values(a, scores, column, kStep, vectors, more);
      const float peak = fmaxf(largest, largest_of(more));
      sum *= exp_fused(reference_of(largest) - reference_of(peak));
      sum += exponentials(more, reference_of(peak));
      largest = peak;
    }
    const float reference = reference_of(Group::fold(fmaxf(largest, largest_of(kept)), LargestNumber{}));
    sum = sum == 0.0f ? 0.0f : sum * exp_fused(reference_of(largest) - reference);
    sum = Group::fold(sum + exponentials(kept, reference), Add{});
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;  // 0: nothing is seen
    T* const y = static_cast<T*>(a.y) + row * a.keys;
    write_values(y, first, kStep, columns, scores.seen, vectors.x, inverse, kept);
    for (int64_t column = behind; column < columns; column += kStep) {
      read_values(a, scores, column, kStep, vectors, more);
      exponentials(more, reference);
      write_values(y, column, kStep, columns, scores.seen, vectors.x, inverse, more);
    }
  }
}

template <typename T>
Vectors vectors_of(const ds_softmax_forward_args& a) {
  constexpr int64_t kSize = RowPack<T>::kSize;
  const bool strides =
      a.mask_outer_stride % kSize == 0 && a.mask_middle_stride % kSize == 0 && a.mask_query_stride % kSize == 0;
  return {whole_packs<T>(a.keys, a.x, a.y), whole_packs<T>(a.keys, a.mask) && strides};
}

}  // namespace

int32_t softmax_forward(const void* arguments, const ds_exec* exec) {
  const ds_softmax_forward_args* a = static_cast<const ds_softmax_forward_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->outer < 0 || a->middle < 0 || a->queries < 0 || a->keys < 0) return DS_BAD_ARGUMENT;
  if (a->mask != nullptr && !is_float(a->mask_dtype)) return DS_UNSUPPORTED_DTYPE;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const int64_t rows = a->keys == 0 ? 0 : a->outer * a->middle * a->queries;
    using Narrow = RowShape<kRowWarp, 4>;
    return with_row_shape<T, Narrow, RowShape<256, 4>, RowShape<512, 4, true>>(a->keys, [&](auto shape) -> int32_t {
      using Row = decltype(shape);
      return launch(exec, Shape(Row::blocks(rows), Row::kBlock), softmax_kernel<T, Row>, *a, rows, vectors_of<T>(*a));
    });
  });
}

}  // namespace dsk
