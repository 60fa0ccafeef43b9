// Elements of tensors whose dtype is known when the kernel runs: the same branch for every thread, beside a memory
// access.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

// A tensor of floats.
struct Floats {
  void* data;
  int32_t dtype;
};

inline Floats floats_of(const void* data, int32_t dtype) { return {const_cast<void*>(data), dtype}; }

DSK_DEVICE float load(const Floats& tensor, int64_t i) {
  if (tensor.dtype == DS_F32) return static_cast<const float*>(tensor.data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(tensor.data)[i];
  return tensor.dtype == DS_BF16 ? to_float(bfloat16{bits}) : to_float(float16{bits});
}

// A 16-bit element as `rounding` says, for element i of the tensor.
DSK_DEVICE uint16_t narrow(int32_t dtype, float x, const Rounding& rounding, int64_t i) {
  return dtype == DS_BF16 ? from_float<bfloat16>(x, rounding, i).bits : from_float<float16>(x, rounding, i).bits;
}

DSK_DEVICE float widen(int32_t dtype, uint16_t bits) {
  return dtype == DS_BF16 ? to_float(bfloat16{bits}) : to_float(float16{bits});
}

// Stores x and returns the value as stored.
DSK_DEVICE float store(const Floats& tensor, int64_t i, float x, const Rounding& rounding) {
  if (tensor.dtype == DS_F32) {
    static_cast<float*>(tensor.data)[i] = x;
    return x;
  }
  const uint16_t bits = narrow(tensor.dtype, x, rounding, i);
  static_cast<uint16_t*>(tensor.data)[i] = bits;
  return widen(tensor.dtype, bits);
}

// Four elements from i on, a multiple of four, of a tensor that is aligned to four of them.
DSK_DEVICE void load4(const Floats& tensor, int64_t i, float (&x)[4]) {
  if (tensor.dtype == DS_F32) {
    const Pack<float, 4> pack = static_cast<const Pack<float, 4>*>(tensor.data)[i / 4];
    for (int k = 0; k < 4; ++k) x[k] = pack.values[k];
  } else {
    const Pack<uint16_t, 4> pack = static_cast<const Pack<uint16_t, 4>*>(tensor.data)[i / 4];
    for (int k = 0; k < 4; ++k) x[k] = widen(tensor.dtype, pack.values[k]);
  }
}

// As `store`; x becomes what was stored.
DSK_DEVICE void store4(const Floats& tensor, int64_t i, float (&x)[4], const Rounding& rounding) {
  if (tensor.dtype == DS_F32) {
    Pack<float, 4> pack;
    for (int k = 0; k < 4; ++k) pack.values[k] = x[k];
    static_cast<Pack<float, 4>*>(tensor.data)[i / 4] = pack;
  } else {
    Pack<uint16_t, 4> pack;
    for (int k = 0; k < 4; ++k) {
      pack.values[k] = narrow(tensor.dtype, x[k], rounding, i + k);
      x[k] = widen(tensor.dtype, pack.values[k]);
    }
    static_cast<Pack<uint16_t, 4>*>(tensor.data)[i / 4] = pack;
  }
}

inline bool aligned4(const Floats& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.data) % (tensor.dtype == DS_F32 ? 16 : 8) == 0;
}

DSK_DEVICE float factor_of(const float* grad_factor) { return grad_factor != nullptr ? *grad_factor : 1.0f; }

}  // namespace dsk
