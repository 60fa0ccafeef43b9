// The 8-bit codes of optimizer states: a dynamic tree, whose leading zeros are a decade and whose last bits are linear.
//
// Code 0 is 0. Another code c of a tree of n codes has a leading one worth k = 2^floor(log2 c); with j = c - k + 1 and
// e = log2(n / 2 / k) it means (0.1 + 0.9 j / k) / 10^e, from 1 downwards, in units of the largest magnitude of a
// block. Source: T. Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022, section 2.1 and figure
// 2; here values are the upper ends of the linear cells, so that 1 is exact. ds_core/ops/_adam8bit.py has the same in
// torch.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

template <int kCodes>
struct CodeValues {
  float values[kCodes];

  constexpr CodeValues() : values() {
    double scale = 1.0;
    for (int k = kCodes / 2; k >= 1; k /= 2, scale *= 10.0) {
      for (int j = 1; j <= k; ++j) values[k + j - 1] = static_cast<float>((0.1 + 0.9 * j / k) / scale);
    }
  }
};

constexpr int kSignedCodes = 128;  // magnitudes of signed codes; the highest bit is the sign
constexpr int kUnsignedCodes = 256;

static __device__ const CodeValues<kSignedCodes> kSignedValues = CodeValues<kSignedCodes>();
static __device__ const CodeValues<kUnsignedCodes> kUnsignedValues = CodeValues<kUnsignedCodes>();

// Both trees in shared memory.
struct CodeTrees {
  float signed_values[kSignedCodes];
  float signed_edges[kSignedCodes];  // edges[c] lies between codes c and c + 1
  float unsigned_values[kUnsignedCodes];
  float unsigned_edges[kUnsignedCodes];
};

// Called by all threads of a block; the caller has a barrier before the first use.
DSK_DEVICE void fill_trees(CodeTrees& trees) {
  for (int c = static_cast<int>(threadIdx.x); c < kUnsignedCodes; c += static_cast<int>(blockDim.x)) {
    const float value = kUnsignedValues.values[c];
    trees.unsigned_values[c] = value;
    trees.unsigned_edges[c] = c + 1 < kUnsignedCodes ? (value + kUnsignedValues.values[c + 1]) * 0.5f : 2.0f;
    if (c >= kSignedCodes) continue;
    const float magnitude = kSignedValues.values[c];
    trees.signed_values[c] = magnitude;
    trees.signed_edges[c] = c + 1 < kSignedCodes ? (magnitude + kSignedValues.values[c + 1]) * 0.5f : 2.0f;
  }
}

// The nearest code to x in [0, 1]; between two, the lower: the number of edges that x is above.
template <int kCodes>
DSK_DEVICE unsigned nearest_code(const float* edges, float x) {
  unsigned code = 0;
  for (unsigned step = kCodes / 2; step > 0; step /= 2) {
    if (x > edges[code + step - 1]) code += step;
  }
  return code;
}

DSK_DEVICE float decode_signed(const CodeTrees& trees, uint8_t code, float scale) {
  const float value = trees.signed_values[code & 127] * scale;
  return float_of(bits_of(value) | static_cast<uint32_t>(code & 128) << 24);
}
DSK_DEVICE float decode_unsigned(const CodeTrees& trees, uint8_t code, float scale) {
  return trees.unsigned_values[code] * scale;
}

DSK_DEVICE uint32_t magnitude_bits(float x) { return bits_of(x) & 0x7fffffffu; }

// Whether a block with this largest magnitude has codes other than 0: it is a normal number.
DSK_DEVICE bool has_codes(uint32_t largest) { return largest >= 0x00800000u && largest < 0x7f800000u; }

DSK_DEVICE uint8_t encode_signed(const CodeTrees& trees, float x, uint32_t largest) {
  if (!has_codes(largest)) return 0;
  const unsigned code = nearest_code<kSignedCodes>(trees.signed_edges, float_of(magnitude_bits(x)) / float_of(largest));
  return static_cast<uint8_t>(code | (code != 0 ? bits_of(x) >> 24 & 128u : 0u));
}
DSK_DEVICE uint8_t encode_unsigned(const CodeTrees& trees, float x, uint32_t largest) {
  if (!has_codes(largest)) return 0;
  return static_cast<uint8_t>(
      nearest_code<kUnsignedCodes>(trees.unsigned_edges, float_of(magnitude_bits(x)) / float_of(largest)));
}

}  // namespace dsk
