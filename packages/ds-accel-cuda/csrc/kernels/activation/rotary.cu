// rotary and rotary_: pairs of elements turned by the angle of their token.
//
// A thread takes as many pairs of a head as fill two packs, so that it reads and writes 16 bytes at a time and its
// neighbours what is next to it; where the pairs end, further threads copy the rest of the head. Products and sums are
// rounded one by one, so the bits are those of the reference.
//
// Memory traffic: x read and y written once, 1.0 times the minimum; the tables come from the caches for all heads but
// one of a token.
#include "activation/rows.h"
#include "row.h"

namespace dsk {
namespace {

// What a token's heads are cut into.
struct Pieces {
  int64_t turned;  // of a head
  int64_t copied;
  int64_t count;  // of all heads of all tokens
  bool vector;    // all whole and aligned
};

// Element i of a pair in packs at [2 * first, ...) of neighbours, or of the halves.
template <typename T>
DSK_DEVICE void turn(RowPack<T> (&x)[2], const float* cos, const float* sin, bool interleaved, float sign) {
  constexpr int kSize = RowPack<T>::kSize;
  RowPack<T> y[2];
#pragma unroll
  for (int i = 0; i < kSize; ++i) {
    const int second = 2 * i + 1;
    const float a = interleaved ? x[2 * i / kSize].value(2 * i % kSize) : x[0].value(i);
    const float b = interleaved ? x[second / kSize].value(second % kSize) : x[1].value(i);
    const float turned_a = a * cos[i] - b * (sign * sin[i]);
    const float turned_b = b * cos[i] + a * (sign * sin[i]);
    if (interleaved) {
      y[2 * i / kSize].set_value(2 * i % kSize, turned_a);
      y[second / kSize].set_value(second % kSize, turned_b);
    } else {
      y[0].set_value(i, turned_a);
      y[1].set_value(i, turned_b);
    }
  }
  x[0] = y[0];
  x[1] = y[1];
}

template <typename T, bool interleaved>
__global__ void __launch_bounds__(kThreads) rotary_kernel(ds_rotary_args a, Pieces p) {
  constexpr int kSize = RowPack<T>::kSize;
  const float sign = a.inverse != 0 ? -1.0f : 1.0f;
  DSK_GRID_STRIDE(number, p.count) {
    const int64_t head_number = quotient(number, p.turned + p.copied);
    const int64_t piece = number - head_number * (p.turned + p.copied);
    const int64_t token_number = quotient(head_number, a.heads);
    const int64_t head = head_number - token_number * a.heads;
    const int64_t position = a.positions[token_number];
    if (static_cast<uint64_t>(position) >= static_cast<uint64_t>(a.table_rows)) {
      report_bad_index();
      return;
    }
    const int64_t batch = quotient(token_number, a.tokens);
    const int64_t token = token_number - batch * a.tokens;
    const T* x =
        static_cast<const T*>(a.x) + batch * a.x_batch_stride + token * a.x_token_stride + head * a.x_head_stride;
    T* y = static_cast<T*>(a.y) + batch * a.y_batch_stride + token * a.y_token_stride + head * a.y_head_stride;
    if (piece >= p.turned) {
      const int64_t column = 2 * a.half + (piece - p.turned) * kSize;
      RowPack<T> rest[1];
      load_packs(x, column, 0, a.dim, p.vector, rest);
      store_pack(rest[0], y, column, a.dim, p.vector);
      continue;
    }
    const int64_t pair = piece * kSize;
    const int64_t left = a.half - pair;
    const int valid = left < kSize ? static_cast<int>(left) : kSize;
    float cos[kSize];
    float sin[kSize];
    load_floats(a.cos + position * a.half + pair, valid, p.vector, cos);
    load_floats(a.sin + position * a.half + pair, valid, p.vector, sin);
    // The two packs begin at `pair` of each half, or at twice `pair`.
    const int64_t first = interleaved ? 2 * pair : pair;
    const int64_t apart = interleaved ? kSize : a.half;
    const int64_t ends[2] = {interleaved ? 2 * a.half : a.half, 2 * a.half};
    RowPack<T> values[2];
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      RowPack<T> one[1];
      load_packs(x, first + j * apart, 0, ends[j], p.vector, one);
      values[j] = one[0];
    }
    turn(values, cos, sin, interleaved, sign);
#pragma unroll
    for (int j = 0; j < 2; ++j) store_pack(values[j], y, first + j * apart, ends[j], p.vector);
  }
}

bool strides_whole(int64_t size, const ds_rotary_args& a) {
  const int64_t strides[] = {a.x_batch_stride, a.x_token_stride, a.x_head_stride,
                             a.y_batch_stride, a.y_token_stride, a.y_head_stride};
  for (const int64_t stride : strides) {
    if (stride % size != 0) return false;
  }
  return true;
}

template <typename T>
Pieces pieces_of(const ds_rotary_args& a) {
  constexpr int64_t kSize = RowPack<T>::kSize;
  Pieces p = {ceil_div(a.half, kSize), 0, 0, false};
  if (a.x != a.y) p.copied = ceil_div(a.dim - 2 * a.half, kSize);
  p.count = a.batch * a.tokens * a.heads * (p.turned + p.copied);
  p.vector = a.half % kSize == 0 && (p.copied == 0 || a.dim % kSize == 0) && strides_whole(kSize, a) &&
             all_aligned(16, a.x, a.y, a.cos, a.sin);
  return p;
}

}  // namespace

int32_t rotary(const void* arguments, const ds_exec* exec) {
  const ds_rotary_args* a = static_cast<const ds_rotary_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->tokens < 0 || a->heads < 0 || a->half < 0 || a->dim < 2 * a->half) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const Pieces p = pieces_of<T>(*a);
    const Shape shape(blocks_for(p.count, kThreads), kThreads);
    return a->interleaved != 0 ? launch(exec, shape, rotary_kernel<T, true>, *a, p)
                               : launch(exec, shape, rotary_kernel<T, false>, *a, p);
  });
}

}  // namespace dsk
