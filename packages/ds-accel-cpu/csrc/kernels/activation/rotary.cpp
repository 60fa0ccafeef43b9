// rotary and rotary_: pairs of elements turned by the angle of their token.
#include "activation/rows.h"
#include "row_view.h"

namespace dsk {
namespace {

constexpr int64_t kPairs = kBlock / 2;

// Pairs [0, n) of (first, second), which the outputs may overlay.
DSK_INLINE void turn(const float* first, const float* second, const float* cos, const float* sin, float sign, int64_t n,
                     float* __restrict first_out, float* __restrict second_out) {
  for (int64_t i = 0; i < n; ++i) first_out[i] = first[i] * cos[i] - second[i] * (sign * sin[i]);
  for (int64_t i = 0; i < n; ++i) second_out[i] = second[i] * cos[i] + first[i] * (sign * sin[i]);
}

void turn_halves(const ds_rotary_args& a, const char* x, const float* cos, const float* sin, char* y) {
  alignas(64) float first[kPairs];
  alignas(64) float second[kPairs];
  alignas(64) float first_out[kPairs];
  alignas(64) float second_out[kPairs];
  const int64_t bytes = element_bytes(a.dtype);
  const float sign = a.inverse != 0 ? -1.0f : 1.0f;
  for (int64_t i = 0; i < a.half; i += kPairs) {
    const int64_t n = min64(kPairs, a.half - i);
    load_block(a.dtype, at(x, i, bytes), first, n);
    load_block(a.dtype, at(x, a.half + i, bytes), second, n);
    turn(first, second, cos + i, sin + i, sign, n, first_out, second_out);
    store_block(a.dtype, first_out, at(y, i, bytes), n);
    store_block(a.dtype, second_out, at(y, a.half + i, bytes), n);
  }
}

void turn_neighbours(const ds_rotary_args& a, const char* x, const float* cos, const float* sin, char* y) {
  alignas(64) float pairs[kBlock];
  alignas(64) float turned[kBlock];
  const int64_t bytes = element_bytes(a.dtype);
  const float sign = a.inverse != 0 ? -1.0f : 1.0f;
  for (int64_t i = 0; i < a.half; i += kPairs) {
    const int64_t n = min64(kPairs, a.half - i);
    load_block(a.dtype, at(x, 2 * i, bytes), pairs, 2 * n);
    for (int64_t j = 0; j < n; ++j) {
      const float c = cos[i + j];
      const float s = sign * sin[i + j];
      turned[2 * j] = pairs[2 * j] * c - pairs[2 * j + 1] * s;
      turned[2 * j + 1] = pairs[2 * j + 1] * c + pairs[2 * j] * s;
    }
    store_block(a.dtype, turned, at(y, 2 * i, bytes), 2 * n);
  }
}

void turn_token(const ds_rotary_args& a, int64_t batch, int64_t token) {
  const int64_t bytes = element_bytes(a.dtype);
  const int64_t position = a.positions[batch * a.tokens + token];
  const float* cos = a.cos + position * a.half;
  const float* sin = a.sin + position * a.half;
  for (int64_t head = 0; head < a.heads; ++head) {
    const char* x = at(a.x, batch * a.x_batch_stride + token * a.x_token_stride + head * a.x_head_stride, bytes);
    char* y = at(a.y, batch * a.y_batch_stride + token * a.y_token_stride + head * a.y_head_stride, bytes);
    if (a.interleaved != 0) {
      turn_neighbours(a, x, cos, sin, y);
    } else {
      turn_halves(a, x, cos, sin, y);
    }
    const int64_t turned = 2 * a.half * bytes;
    if (x != y) std::memcpy(y + turned, x + turned, static_cast<size_t>(a.dim * bytes - turned));
  }
}

}  // namespace

int32_t rotary(const void* arguments, const ds_exec* exec) {
  const ds_rotary_args* a = static_cast<const ds_rotary_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->tokens < 0 || a->heads < 0 || a->half < 0 || a->dim < 2 * a->half) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const int64_t count = a->batch * a->tokens;
  if (count == 0) return DS_OK;
  if (!all_rows_exist(a->positions, count, a->table_rows)) return DS_INDEX_OUT_OF_RANGE;
  for_rows(exec, count, a->heads * a->dim, [a](int64_t row) { turn_token(*a, row / a->tokens, row % a->tokens); });
  return DS_OK;
}

}  // namespace dsk
