// softmax_forward and softmax_backward: rows in float32, scaled, masked and cut to what a query may see.
#include "activation/rows.h"
#include "elementary.h"
#include "lanes.h"
#include "row_split.h"
#include "row_view.h"

namespace dsk {
namespace {

// Rows up to this long are kept in float32 between the sweeps; longer ones are read again, from a near cache.
constexpr int64_t kKept = 8 * kBlock;

struct Row {
  const ds_softmax_forward_args* a;
  const char* x;
  const char* mask;  // or NULL
  float* kept;       // or NULL
  int64_t seen;

  // Scaled and masked values [column, column + n).
  DSK_INLINE float* first_read(int64_t column, int64_t n, float* buffer) const {
    float* __restrict values = kept != nullptr ? kept + column : buffer;
    const float scale = static_cast<float>(a->scale);
    load_block(a->dtype, at(x, column, element_bytes(a->dtype)), values, n);
    for (int64_t i = 0; i < n; ++i) values[i] *= scale;
    if (mask != nullptr) add_block(a->mask_dtype, mask, column, n, values);
    return values;
  }
  DSK_INLINE float* read(int64_t column, int64_t n, float* buffer) const {
    return kept != nullptr ? kept + column : first_read(column, n, buffer);
  }
};

// The largest value in a fixed number of lanes, NaN if there is one.
struct Largest {
  static constexpr int kLanes = 32;
  alignas(64) float lanes[kLanes];
  Largest() {
    for (int j = 0; j < kLanes; ++j) lanes[j] = -__builtin_inff();
  }
  static DSK_INLINE float of(float a, float b) { return (b > a) | (b != b) ? b : a; }
  void add(const float* x, int64_t n) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) lanes[j] = of(lanes[j], x[i + j]);
    }
    for (; i < n; ++i) lanes[0] = of(lanes[0], x[i]);
  }
  float fold() const {
    float largest = lanes[0];
    for (int j = 1; j < kLanes; ++j) largest = of(largest, lanes[j]);
    return largest;
  }
};

int64_t keys_seen(const ds_softmax_forward_args& a, int64_t outer, int64_t query) {
  int64_t seen = a.lengths != nullptr ? min64(a.keys, max64(0, a.lengths[outer])) : a.keys;
  if (a.causal != 0) seen = min64(seen, max64(0, query + 1 + a.keys - a.queries));
  return seen;
}

// exp(value - largest) of each value, into what is kept; returns their sum.
float exponentials(const Row& row, float largest, float* buffer) {
  FloatLanes sums;
  for_blocks(row.seen, [&](int64_t column, int64_t n) {
    float* values = row.read(column, n, buffer);
    for (int64_t i = 0; i < n; ++i) values[i] = exp_of(values[i] - largest);
    sums.add(n, [values](int64_t i) { return values[i]; });
  });
  return sums.fold();
}

void forward_row(const ds_softmax_forward_args& a, int64_t number) {
  alignas(64) float kept[kKept];
  alignas(64) float buffer[kBlock];
  const int64_t bytes = element_bytes(a.dtype);
  const int64_t query = number % a.queries;
  const int64_t middle = number / a.queries % a.middle;
  const int64_t outer = number / a.queries / a.middle;
  Row row = {&a, at(a.x, number * a.keys, bytes), nullptr, nullptr, keys_seen(a, outer, query)};
  if (a.mask != nullptr) {
    row.mask = at(a.mask, outer * a.mask_outer_stride + middle * a.mask_middle_stride + query * a.mask_query_stride,
                  element_bytes(a.mask_dtype));
  }
  if (row.seen <= kKept) row.kept = kept;
  char* y = at(a.y, number * a.keys, bytes);
  Largest largest_lanes;
  for_blocks(row.seen, [&](int64_t column, int64_t n) { largest_lanes.add(row.first_read(column, n, buffer), n); });
  const float largest = largest_lanes.fold();
  if (largest == -__builtin_inff()) {  // nothing is seen
    std::memset(y, 0, static_cast<size_t>(a.keys * bytes));
    return;
  }
  const float inverse = 1.0f / exponentials(row, largest, buffer);
  for_blocks(row.seen, [&](int64_t column, int64_t n) {
    float* values = row.read(column, n, buffer);
    if (row.kept == nullptr) {
      for (int64_t i = 0; i < n; ++i) values[i] = exp_of(values[i] - largest);
    }
    for (int64_t i = 0; i < n; ++i) values[i] *= inverse;
    store_block(a.dtype, values, at(y, column, bytes), n);
  });
  std::memset(at(y, row.seen, bytes), 0, static_cast<size_t>((a.keys - row.seen) * bytes));
}

void backward_row(const ds_softmax_backward_args& a, int64_t row) {
  alignas(64) float dy_buffer[kBlock];
  alignas(64) float y_buffer[kBlock];
  alignas(64) float dx[kBlock];
  const float scale = static_cast<float>(a.scale);
  FloatLanes products;
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const float* dy = read_block(a.dtype, a.dy, row * a.columns + column, n, dy_buffer);
    const float* y = read_block(a.dtype, a.y, row * a.columns + column, n, y_buffer);
    products.add(n, [=](int64_t i) { return dy[i] * y[i]; });
  });
  const float along = products.fold();
  for_blocks(a.columns, [&](int64_t column, int64_t n) {
    const int64_t first = row * a.columns + column;
    const float* __restrict dy = read_block(a.dtype, a.dy, first, n, dy_buffer);
    const float* __restrict y = read_block(a.dtype, a.y, first, n, y_buffer);
    for (int64_t i = 0; i < n; ++i) dx[i] = (dy[i] - along) * y[i] * scale;
    store_block(a.dtype, dx, at(a.dx, first, element_bytes(a.dtype)), n);
  });
}

}  // namespace

int32_t softmax_forward(const void* arguments, const ds_exec* exec) {
  const ds_softmax_forward_args* a = static_cast<const ds_softmax_forward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->outer < 0 || a->middle < 0 || a->queries < 0 || a->keys < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || (a->mask != nullptr && !is_float(a->mask_dtype))) return DS_UNSUPPORTED_DTYPE;
  if (a->keys == 0) return DS_OK;
  for_rows(exec, a->outer * a->middle * a->queries, a->keys, [a](int64_t row) { forward_row(*a, row); });
  return DS_OK;
}

int32_t softmax_backward(const void* arguments, const ds_exec* exec) {
  const ds_softmax_backward_args* a = static_cast<const ds_softmax_backward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  for_rows(exec, a->rows, a->columns, [a](int64_t row) { backward_row(*a, row); });
  return DS_OK;
}

}  // namespace dsk
