// float32 to and from bfloat16 and float16, to nearest even or stochastically, with the bits of ds-accel-cpu.
#pragma once

#include <cstdint>
#include <cstring>

namespace dsk {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

DSK_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
DSK_HOST_DEVICE float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

// --- float16 --------------------------------------------------------------------------------------------------------

#if defined(__CUDA_ARCH__)

DSK_DEVICE float f16_to_float(uint16_t half) { return __half2float(__ushort_as_half(half)); }
DSK_DEVICE uint16_t f16_of(float x) { return __half_as_ushort(__float2half_rn(x)); }

#elif defined(__HIP_DEVICE_COMPILE__)

DSK_DEVICE float f16_to_float(uint16_t half) {
  _Float16 value;
  memcpy(&value, &half, 2);
  return static_cast<float>(value);
}
DSK_DEVICE uint16_t f16_of(float x) {
  const _Float16 value = static_cast<_Float16>(x);
  uint16_t bits;
  memcpy(&bits, &value, 2);
  return bits;
}

#else

DSK_HOST_DEVICE float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  const uint32_t normal = (magnitude << 13) + 0x38000000u;
  const uint32_t special = (magnitude << 13) | 0x7f800000u | (magnitude > 0x7c00u ? 0x00400000u : 0u);
  const uint32_t subnormal = bits_of(static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f);
  const uint32_t result = magnitude >= 0x7c00u ? special : magnitude < 0x0400u ? subnormal : normal;
  return float_of(sign | result);
}

DSK_HOST_DEVICE uint16_t f16_of(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t result;
  if (magnitude > 0x7f800000u) {
    result = 0x7e00u | ((magnitude >> 13) & 0x3ffu);  // quiet
  } else if (magnitude >= 0x477ff000u) {
    result = 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    result = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // 0.5 puts 2^-24 at the last bit
  } else {
    result = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<uint16_t>(sign | result);
}

#endif

// --- bfloat16 -------------------------------------------------------------------------------------------------------

DSK_HOST_DEVICE uint16_t bf16_of(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
#endif
}

// --- elements of tensors --------------------------------------------------------------------------------------------

DSK_DEVICE float to_float(float x) { return x; }
DSK_DEVICE float to_float(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
DSK_DEVICE float to_float(float16 x) { return f16_to_float(x.bits); }

// x rounded to nearest even.
template <typename T>
DSK_DEVICE T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    return {bf16_of(x)};
  } else {
    return {f16_of(x)};
  }
}

// --- stochastic rounding --------------------------------------------------------------------------------------------

// The random bits of one tensor of one call; ds_core/ops/rounding.py has the same in torch integer ops.
struct Rounding {
  bool stochastic;
  uint32_t key0;
  uint32_t key1;
  uint64_t offset;
};

DSK_HOST_DEVICE uint32_t mix32(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  x ^= x >> 16;
  return x;
}

// `stream` tells the tensors of a call apart. A seed below 0 rounds to nearest even.
inline Rounding make_rounding(int64_t seed, int64_t offset, uint64_t stream) {
  if (seed < 0) return {false, 0, 0, 0};
  uint64_t z = static_cast<uint64_t>(seed) + (stream + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  z ^= z >> 31;
  return {true, static_cast<uint32_t>(z), static_cast<uint32_t>(z >> 32), static_cast<uint64_t>(offset)};
}

// 32 random bits of element `index` of the tensor.
DSK_HOST_DEVICE uint32_t random_bits(const Rounding& rounding, int64_t index) {
  const uint64_t place = rounding.offset + static_cast<uint64_t>(index);
  return mix32(mix32(static_cast<uint32_t>(place) ^ rounding.key0) +
               (static_cast<uint32_t>(place >> 32) ^ rounding.key1));
}

DSK_HOST_DEVICE uint16_t bf16_of(float x, uint32_t random) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + (random & 0xffffu)) >> 16;
  const uint32_t special = (bits >> 16) | ((bits & 0x007fffffu) != 0 ? 0x40u : 0u);
  return static_cast<uint16_t>((bits & 0x7f800000u) == 0x7f800000u ? special : rounded);
}

// Normal results: random bits below the last kept one, then truncation. Subnormal results (steps of 2^-24): the same
// in fixed point, with 13 random bits.
DSK_HOST_DEVICE uint16_t f16_of(float x, uint32_t random) {
  const uint32_t bits = bits_of(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t low = random & 0x1fffu;
  uint32_t result;
  if (magnitude >= 0x7f800000u) {
    result = magnitude > 0x7f800000u ? (0x7e00u | ((magnitude >> 13) & 0x3ffu)) : 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    const float steps = float_of(magnitude) * 0x1p24f + static_cast<float>(static_cast<int32_t>(low)) * 0x1p-13f;
    result = static_cast<uint32_t>(static_cast<int32_t>(steps));
  } else {
    result = (magnitude + 0xc8000000u + low) >> 13;
    result = result > 0x7c00u ? 0x7c00u : result;
  }
  return static_cast<uint16_t>(sign | result);
}

// x rounded as `rounding` says, for element `index` of a tensor.
template <typename T>
DSK_DEVICE T from_float(float x, const Rounding& rounding, int64_t index) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    if (!rounding.stochastic) return from_float<T>(x);
    const uint32_t random = random_bits(rounding, index);
    if constexpr (std::is_same_v<T, bfloat16>) {
      return {bf16_of(x, random)};
    } else {
      return {f16_of(x, random)};
    }
  }
}

}  // namespace dsk
