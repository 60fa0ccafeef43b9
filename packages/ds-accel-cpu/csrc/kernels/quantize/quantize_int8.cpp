// quantize_int8 and dequantize_int8: symmetric, by groups of consecutive elements.
#include "quantize/rows.h"
#include "row_split.h"

namespace dsk {
namespace {

// Bits of the largest magnitude; as integers NaN is above infinity, and infinity above every number.
uint32_t largest_magnitude(const float* __restrict x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

void quantize_block(const float* __restrict x, int8_t* __restrict q, int64_t n, float scale) {
  for (int64_t i = 0; i < n; ++i) {
    float value = __builtin_nearbyintf(x[i] / scale);
    value = value > 127.0f ? 127.0f : value;
    value = value < -127.0f ? -127.0f : value;
    q[i] = static_cast<int8_t>(static_cast<int32_t>(value));
  }
}

void quantize_group(const ds_quantize_int8_args& a, int64_t group) {
  alignas(64) float buffer[kBlock];
  const int64_t start = group * a.group_size;
  const int64_t count = min64(a.group_size, a.numel - start);
  uint32_t largest = 0;
  for_blocks(count, [&](int64_t first, int64_t n) {
    const uint32_t here = largest_magnitude(read_block(a.dtype, a.x, start + first, n, buffer), n);
    largest = here > largest ? here : largest;
  });
  float scale = float_of(largest) / 127.0f;
  if (scale == 0.0f) scale = 1.0f;
  a.scales[group] = scale;
  if (largest >= 0x7f800000u) {  // the scale says it: dequantized, the whole group is NaN
    for (int64_t i = 0; i < count; ++i) a.q[start + i] = 0;
    return;
  }
  for_blocks(count, [&](int64_t first, int64_t n) {
    quantize_block(read_block(a.dtype, a.x, start + first, n, buffer), a.q + start + first, n, scale);
  });
}

void dequantize_group(const ds_dequantize_int8_args& a, int64_t group) {
  alignas(64) float buffer[kBlock];
  const int64_t start = group * a.group_size;
  const int64_t count = min64(a.group_size, a.numel - start);
  const float scale = a.scales[group];
  for_blocks(count, [&](int64_t first, int64_t n) {
    const int8_t* __restrict q = a.q + start + first;
    for (int64_t i = 0; i < n; ++i) buffer[i] = static_cast<float>(q[i]) * scale;
    store_block(a.dtype, buffer, at(a.x, start + first, element_bytes(a.dtype)), n);
  });
}

// Runs body(group) for all groups, several of them a task when they are small.
template <typename Body>
void for_groups(const ds_exec* exec, int64_t numel, int64_t group_size, const Body& body) {
  const int64_t groups = ceil_div(numel, group_size);
  const int64_t per_task = max64(1, 32 * kBlock / group_size);
  parallel_for(exec, ceil_div(groups, per_task), [&](int64_t task) {
    const int64_t end = min64(groups, (task + 1) * per_task);
    for (int64_t group = task * per_task; group < end; ++group) body(group);
  });
}

}  // namespace

int32_t quantize_int8(const void* arguments, const ds_exec* exec) {
  const ds_quantize_int8_args* a = static_cast<const ds_quantize_int8_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  for_groups(exec, a->numel, a->group_size, [a](int64_t group) { quantize_group(*a, group); });
  return DS_OK;
}

int32_t dequantize_int8(const void* arguments, const ds_exec* exec) {
  const ds_dequantize_int8_args* a = static_cast<const ds_dequantize_int8_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  for_groups(exec, a->numel, a->group_size, [a](int64_t group) { dequantize_group(*a, group); });
  return DS_OK;
}

}  // namespace dsk
