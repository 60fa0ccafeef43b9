// The 8-bit codes of optimizer states: a dynamic tree, whose leading zeros are a decade and whose last bits are linear.
//
// Code 0 is 0. Another code c of a tree of n codes has a leading one worth k = 2^floor(log2 c); with j = c - k + 1 and
// e = log2(n / 2 / k) it means (0.1 + 0.9 j / k) / 10^e, from 1 downwards, in units of the largest magnitude of a
// block. Source: T. Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022, section 2.1 and figure
// 2; here values are the upper ends of the linear cells, so that 1 is exact. ds_core/ops/_adam8bit.py has the same in
// torch.
#pragma once

#include "convert.h"

namespace dsk {

// Half of the tree's codes are in the uppermost decade. Lookups are by the first 16 bits of a float: such a bucket
// holds at most one boundary between codes, so one comparison finds the code.
template <int kCodes>
struct CodeTree {
  static constexpr uint32_t kLowKey = (127 - 26) << 7;  // 2^-26, below which everything is 0
  static constexpr uint32_t kHighKey = 127 << 7;        // 1
  float values[kCodes];
  float edges[kCodes];  // edges[c] lies between codes c and c + 1; the last is never passed
  uint8_t base[kHighKey - kLowKey + 1];
  bool one_edge_a_bucket;

  constexpr CodeTree() : values(), edges(), base(), one_edge_a_bucket(true) {
    values[0] = 0.0f;
    double scale = 1.0;
    for (int k = kCodes / 2; k >= 1; k /= 2, scale *= 10.0) {
      for (int j = 1; j <= k; ++j) values[k + j - 1] = static_cast<float>((0.1 + 0.9 * j / k) / scale);
    }
    for (int c = 0; c + 1 < kCodes; ++c) edges[c] = (values[c] + values[c + 1]) * 0.5f;
    edges[kCodes - 1] = 2.0f;
    int code = 0;
    double bucket = 0x1p-26;
    for (uint32_t key = kLowKey; key <= kHighKey; ++key) {
      while (static_cast<double>(edges[code]) < bucket) ++code;
      base[key - kLowKey] = static_cast<uint8_t>(code);
      double octave = 0x1p-26;
      for (uint32_t e = kLowKey >> 7; e < key >> 7; ++e) octave *= 2.0;
      const double next = octave * (1.0 + ((key & 127) + 1) / 128.0);
      if (code + 1 < kCodes && static_cast<double>(edges[code + 1]) < next) one_edge_a_bucket = false;
      bucket = next;
    }
  }

  // Where to look for x in [0, 1].
  DSK_INLINE static uint32_t bucket_of(float x) {
    const uint32_t key = bits_of(x) >> 16;
    return (key < kLowKey ? kLowKey : key) - kLowKey;
  }

  // The nearest code to x in its bucket; between two, the lower.
  DSK_INLINE uint8_t nearest(float x, uint32_t bucket) const {
    const uint32_t code = base[bucket];
    return static_cast<uint8_t>(code + (x > edges[code] ? 1u : 0u));
  }
};

inline constexpr CodeTree<128> kSignedTree;    // magnitudes of signed codes; the highest bit is the sign
inline constexpr CodeTree<256> kUnsignedTree;  // codes of what is never negative
static_assert(kSignedTree.one_edge_a_bucket && kUnsignedTree.one_edge_a_bucket, "a lookup may miss a code");

template <bool kSigned>
constexpr const auto& tree_of() {
  if constexpr (kSigned) {
    return kSignedTree;
  } else {
    return kUnsignedTree;
  }
}

inline void load_signed(const uint8_t* __restrict codes, float scale, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float value = kSignedTree.values[codes[i] & 127] * scale;
    out[i] = float_of(bits_of(value) | static_cast<uint32_t>(codes[i] & 128) << 24);
  }
}

inline void load_unsigned(const uint8_t* __restrict codes, float scale, float* __restrict out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) out[i] = kUnsignedTree.values[codes[i]] * scale;
}

// Bits of the largest magnitude; as integers NaN is above infinity, and infinity above every number.
inline uint32_t largest_bits(const float* __restrict x, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = bits_of(x[i]) & 0x7fffffffu;
    largest = magnitude > largest ? magnitude : largest;
  }
  return largest;
}

// Codes of a block in units of its scale; where that is not a normal number, the codes are 0. So shares are in [0, 1].
template <bool kSigned>
void store_codes(const float* __restrict x, uint32_t largest, uint8_t* __restrict codes, int64_t n) {
  if (largest < 0x00800000u || largest >= 0x7f800000u) {  // subnormal: 0 where the processor flushes
    for (int64_t i = 0; i < n; ++i) codes[i] = 0;
    return;
  }
  // What vectors can do comes first, and the lookups, which they are slow at, are a loop of their own.
  const auto& tree = tree_of<kSigned>();
  alignas(64) float shares[kBlock];
  alignas(64) uint32_t buckets[kBlock];
  const float scale = float_of(largest);
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = min64(kBlock, n - first);
    const float* __restrict from = x + first;
    uint8_t* __restrict to = codes + first;
    for (int64_t i = 0; i < count; ++i) {
      shares[i] = float_of(bits_of(from[i]) & 0x7fffffffu) / scale;
      buckets[i] = tree.bucket_of(shares[i]);
    }
    for (int64_t i = 0; i < count; ++i) to[i] = tree.nearest(shares[i], buckets[i]);
    if (!kSigned) continue;
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t sign = to[i] != 0 ? bits_of(from[i]) >> 24 & 128u : 0u;
      to[i] = static_cast<uint8_t>(to[i] | sign);
    }
  }
}

}  // namespace dsk
