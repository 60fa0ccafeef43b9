// Eight elements at a time: float32, bfloat16 or float16 in memory, float32 in registers.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

constexpr int kVector = 8;

using Bytes16 = Pack<uint32_t, 4>;  // what one instruction loads or stores

// The first n of eight elements, then zeros. The way they are read does not depend on n or on where they lie.
template <typename T>
DSK_DEVICE void load8(const T* p, int64_t n, float (&out)[kVector]) {
  if (n >= kVector && all_aligned(16, p)) {
    constexpr int kWords = kVector * sizeof(T) / sizeof(Bytes16);
    Bytes16 raw[kWords];
    T values[kVector];
#pragma unroll
    for (int i = 0; i < kWords; ++i) raw[i] = reinterpret_cast<const Bytes16*>(p)[i];
    memcpy(values, raw, sizeof(values));
#pragma unroll
    for (int i = 0; i < kVector; ++i) out[i] = to_float(values[i]);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) out[i] = i < n ? to_float(p[i]) : 0.0f;
}

// The first n of eight values, rounded to nearest even.
template <typename T>
DSK_DEVICE void store8(T* p, int64_t n, const float (&values)[kVector]) {
  if (n >= kVector && all_aligned(16, p)) {
    constexpr int kWords = kVector * sizeof(T) / sizeof(Bytes16);
    Bytes16 raw[kWords];
    T rounded[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) rounded[i] = from_float<T>(values[i]);
    memcpy(raw, rounded, sizeof(rounded));
#pragma unroll
    for (int i = 0; i < kWords; ++i) reinterpret_cast<Bytes16*>(p)[i] = raw[i];
    return;
  }
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i < n) p[i] = from_float<T>(values[i]);
  }
}

// The same where the dtype is known when the kernel runs: every thread takes the same branch.
DSK_DEVICE void load8(int32_t dtype, const void* base, int64_t first, int64_t n, float (&out)[kVector]) {
  if (dtype == DS_F32) {
    load8(static_cast<const float*>(base) + first, n, out);
  } else if (dtype == DS_BF16) {
    load8(static_cast<const bfloat16*>(base) + first, n, out);
  } else {
    load8(static_cast<const float16*>(base) + first, n, out);
  }
}

DSK_DEVICE void store8(int32_t dtype, void* base, int64_t first, int64_t n, const float (&values)[kVector]) {
  if (dtype == DS_F32) {
    store8(static_cast<float*>(base) + first, n, values);
  } else if (dtype == DS_BF16) {
    store8(static_cast<bfloat16*>(base) + first, n, values);
  } else {
    store8(static_cast<float16*>(base) + first, n, values);
  }
}

// One element.
DSK_DEVICE float float_at(int32_t dtype, const void* base, int64_t index) {
  if (dtype == DS_F32) return static_cast<const float*>(base)[index];
  if (dtype == DS_BF16) return to_float(static_cast<const bfloat16*>(base)[index]);
  return to_float(static_cast<const float16*>(base)[index]);
}

DSK_DEVICE void set_float(int32_t dtype, void* base, int64_t index, float value) {
  if (dtype == DS_F32) {
    static_cast<float*>(base)[index] = value;
  } else if (dtype == DS_BF16) {
    static_cast<bfloat16*>(base)[index] = from_float<bfloat16>(value);
  } else {
    static_cast<float16*>(base)[index] = from_float<float16>(value);
  }
}

}  // namespace dsk
