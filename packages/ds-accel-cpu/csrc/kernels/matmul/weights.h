// Where the float kernels take weights from: codes or tiles of values, one input at a time or in pairs of bfloat16.
//
// Note [Pairs of bfloat16]
// Where the level multiplies pairs of bfloat16 and activations are bfloat16, weights without their scale are exact in
// bfloat16 (integers up to 256), so only the order of additions differs: an instruction adds two products at once.
// These results differ from other levels' by roundings of float32 sums; the conformance cases state the bound.
#pragma once

#include "matmul/layout.h"
#include "matmul/tiles.h"
#include "matmul/vectors.h"
#include "row_split.h"

namespace dsk::matmul {

// What multiplies and adds. An item is what one word of x holds for a row: an input, or a pair of them.
struct SingleInputs {
  static constexpr int kInputs = 1;  // of an item
  using Value = Floats;              // weights of kLanes outputs for an item
  static DSK_INLINE Value load(const float* p) { return load_floats(p); }
  static DSK_INLINE void store(float* p, Value a) { store_floats(p, a); }
  static DSK_INLINE Floats add_product(const float* x, Value w, Floats sum) { return fma(all_floats(*x), w, sum); }
};

// Codes of kTile outputs that become floats when they are asked for.
template <int kBits, bool kZeros>
struct SingleCodes {
  using Inputs = SingleInputs;
  static constexpr int kStep = 32 / kBits;            // inputs of a word
  static constexpr int kItems = kStep;                // items of a word
  static constexpr int kHigh = kBits == 8 ? 16 : 12;  // shift that brings the upper half of a word into a mantissa
  struct Words {
    Ints low[kVectors];
    Ints high[kVectors];
  };
  const uint8_t* at[kVectors];  // the word of input 0
  Floats zero[kVectors];

  DSK_INLINE Words fetch(int64_t input) const {
    Words w;
    for (int v = 0; v < kVectors; ++v) {
      w.low[v] = load_ints(at[v] + input / kStep * (4 * kBlockOutputs));
      w.high[v] = shift_right(w.low[v], kHigh);
    }
    return w;
  }
  template <int kInput>
  DSK_INLINE Floats value(const Words& w, int v) const {
    constexpr int kPlace = kBits == 8 ? 8 * kInput : 8 * (kInput % 4) + 4 * (kInput / 4);
    constexpr bool kIsHigh = kPlace + kBits > 23;
    const Floats found = code_values<kBits, kIsHigh ? kPlace - kHigh : kPlace>(kIsHigh ? w.high[v] : w.low[v]);
    return kZeros ? subtract(found, zero[v]) : found;
  }
};

#if defined(__AVX512BF16__) || defined(DSK_TILES)

struct PairedInputs {
  static constexpr int kInputs = 2;
  using Value = Ints;
  static DSK_INLINE Value load(const float* p) { return load_ints(p); }
  static DSK_INLINE void store(float* p, Value a) { store_ints(p, a); }
#if defined(__AVX512BF16__)
  static DSK_INLINE Floats add_product(const float* x, Value w, Floats sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(all_floats(*x)), (__m512bh)w);
  }
#endif
};

// The first input of a pair of a word, and how far the second is from it: int4 pairs are those whose codes lie at the
// same bit of the two halves of a word.
template <int kBits>
constexpr int pair_stride() {
  return kBits == 8 ? 1 : 2;
}
template <int kBits>
constexpr int pair_first(int pair) {
  return kBits == 8 ? 2 * pair : pair % 2 * 4 + pair / 2;
}

template <int kBits, bool kZeros>
struct PairedCodes : SingleCodes<kBits, kZeros> {
  using Base = SingleCodes<kBits, kZeros>;
  using Inputs = PairedInputs;
  using Words = typename Base::Words;
  static constexpr int kItems = Base::kStep / 2;

  template <int kPair>
  DSK_INLINE Ints value(const Words& w, int v) const {
    constexpr int kFirst = pair_first<kBits>(kPair);
#if defined(__AVX512F__)
    if constexpr (kBits == 4 && !kZeros) {  // a permutation of words reads five bits, so the table is there twice
      const __m256i half =
          _mm256_setr_epi16(static_cast<short>(0xc100), static_cast<short>(0xc0e0), static_cast<short>(0xc0c0),
                            static_cast<short>(0xc0a0), static_cast<short>(0xc080), static_cast<short>(0xc040),
                            static_cast<short>(0xc000), static_cast<short>(0xbf80), 0, 0x3f80, 0x4000, 0x4040, 0x4080,
                            0x40a0, 0x40c0, 0x40e0);
      constexpr int kPlace = 8 * (kFirst % 4) + 4 * (kFirst / 4);
      const Ints shifted = kPlace == 0 ? w.low[v] : _mm512_srli_epi16(w.low[v], kPlace);
      return _mm512_permutexvar_epi16(shifted, _mm512_broadcast_i64x4(half));
    }
#endif
    const Floats first = Base::template value<kFirst>(w, v);
    return high_halves(first, Base::template value<kFirst + pair_stride<kBits>()>(w, v));
  }
};

#endif

// A tile of weights: [item][kPanel] words.
template <class InputsOf>
struct Tile {
  using Inputs = InputsOf;
  static constexpr int kStep = Inputs::kInputs;
  static constexpr int kItems = 1;
  struct Words {
    typename Inputs::Value values[kVectors];
  };
  const float* tile;
  int64_t first;  // its first input

  DSK_INLINE Words fetch(int64_t input) const {
    Words w;
    for (int v = 0; v < kVectors; ++v) w.values[v] = Inputs::load(tile + (input - first) / kStep * kPanel + v * kLanes);
    return w;
  }
  template <int kItem>
  DSK_INLINE typename Inputs::Value value(const Words& w, int v) const {
    return w.values[v];
  }
};

// A way to run a call: what an item is, the codes that go with it, and how a row of x becomes items, `rows` apart and
// with zeros at the end.
struct Single {
  using Inputs = SingleInputs;
  template <int kBits, bool kZeros>
  using Codes = SingleCodes<kBits, kZeros>;

  static void prepare_row(const ds_linear_args& a, int64_t inputs, int64_t start, int rows, float* out) {
    alignas(64) float buffer[kBlock];
    for_blocks(a.inputs, [&](int64_t column, int64_t n) {
      const float* x = read_block(a.dtype, a.x, start + column, n, buffer);
      for (int64_t i = 0; i < n; ++i) out[(column + i) * rows] = x[i];
    });
    for (int64_t i = a.inputs; i < inputs; ++i) out[i * rows] = 0.0f;
  }
};

#if defined(__AVX512BF16__) || defined(DSK_TILES)
struct Paired {
  using Inputs = PairedInputs;
  template <int kBits, bool kZeros>
  using Codes = PairedCodes<kBits, kZeros>;

  static void prepare_row(const ds_linear_args& a, int64_t inputs, int64_t start, int rows, float* out) {
    const uint16_t* x = static_cast<const uint16_t*>(a.x) + start;
    const int step = 32 / a.bits;
    const auto bits = [&](int64_t input) { return input < a.inputs ? static_cast<uint32_t>(x[input]) : 0u; };
    for (int64_t input = 0; input < inputs; input += step) {
      for (int pair = 0; pair < step / 2; ++pair) {
        const int64_t low = input + (a.bits == 8 ? pair_first<8>(pair) : pair_first<4>(pair));
        const int64_t high = low + (a.bits == 8 ? pair_stride<8>() : pair_stride<4>());
        out[(input / 2 + pair) * rows] = float_of(bits(low) | (bits(high) << 16));
      }
    }
  }
};
#endif

}  // namespace dsk::matmul
