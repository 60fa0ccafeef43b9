// Packed weights (ds_kernel/matmul.h says how they lie) as codes become numbers: one class a format.
#pragma once

#include "gpu/gpu.h"
#include "quantize/formats.h"
#include "vectors.h"

namespace dsk::matmul {

constexpr int kBlockOutputs = 16;
constexpr int kInputUnit = 64;  // inputs are filled up to a multiple of it

// The sizes of one call, in the integers that kernels count with.
struct Layout {
  int inputs;
  int group_size;
  int groups;
  int64_t padded_outputs;  // outputs filled up to whole blocks: a row of scales
  int64_t block_bytes;
  bool whole_words;  // whether the words of codes lie at multiples of their size
};

inline Layout layout_of(const ds_linear_args& a) {
  const int64_t padded_inputs = ceil_div(a.inputs, kInputUnit) * kInputUnit;
  Layout s = {};
  s.inputs = static_cast<int>(a.inputs);
  s.group_size = static_cast<int>(a.group_size < a.inputs ? a.group_size : padded_inputs);
  s.groups = static_cast<int>(ceil_div(a.inputs, s.group_size));
  s.padded_outputs = ceil_div(a.outputs, kBlockOutputs) * kBlockOutputs;
  s.block_bytes = padded_inputs * kBlockOutputs * a.bits / 8;
  s.whole_words = all_aligned(4, a.codes);
  return s;
}

inline int32_t check(const ds_linear_args* a, const ds_exec* exec) {
  constexpr int64_t kMost = int64_t{1} << 29;
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->inputs < 1 || a->inputs > kMost || a->outputs < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (a->group_size < a->inputs && a->group_size % 8 != 0) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

DSK_DEVICE uint32_t word_at(const uint8_t* p, bool whole) {
  if (whole) return *reinterpret_cast<const uint32_t*>(p);
  return p[0] | static_cast<uint32_t>(p[1]) << 8 | static_cast<uint32_t>(p[2]) << 16 |
         static_cast<uint32_t>(p[3]) << 24;
}

// A whole number below 2^23, exactly, less `zero`, a whole number too.
DSK_DEVICE float number_of(uint32_t code, float zero) { return float_of(0x4b000000u | code) - (8388608.0f + zero); }

// A format states the words of eight inputs of one output, the first a multiple of eight; the values of their codes
// less `zero`, of which kZero is a part; and integers state their codes as signed bytes, less kQuadZero, four at a
// time.
struct Int8Weights {
  static constexpr float kZero = 128.0f;
  static constexpr int32_t kQuadZero = 0;
  struct Words {
    uint32_t word[2];
  };

  static DSK_DEVICE Words fetch(const uint8_t* block, int input, int output, bool whole) {
    const uint8_t* p = block + (static_cast<int64_t>(input / 4) * kBlockOutputs + output) * 4;
    return {{word_at(p, whole), word_at(p + 4 * kBlockOutputs, whole)}};
  }
  static DSK_DEVICE uint32_t code(const Words& w, int i) { return (w.word[i / 4] >> (8 * (i % 4))) & 0xffu; }
  static DSK_DEVICE float value(const Words& w, int i, float zero) { return number_of(code(w, i), zero); }
  static DSK_DEVICE int32_t quad(const Words& w, int i) { return static_cast<int32_t>(w.word[i] ^ 0x80808080u); }
};

struct Int4Weights {
  static constexpr float kZero = 8.0f;
  static constexpr int32_t kQuadZero = 8;
  struct Words {
    uint32_t word[1];
  };

  static DSK_DEVICE Words fetch(const uint8_t* block, int input, int output, bool whole) {
    return {{word_at(block + (static_cast<int64_t>(input / 8) * kBlockOutputs + output) * 4, whole)}};
  }
  static DSK_DEVICE uint32_t code(const Words& w, int i) { return (w.word[0] >> (8 * (i % 4) + 4 * (i / 4))) & 0xfu; }
  static DSK_DEVICE float value(const Words& w, int i, float zero) { return number_of(code(w, i), zero); }
  static DSK_DEVICE int32_t quad(const Words& w, int i) {
    return static_cast<int32_t>((w.word[0] >> (4 * i)) & 0x0f0f0f0fu);
  }
};

// Codes of six bits: four of them in the word of their half of sixteen inputs, two in a third word.
struct Bits6 {
  struct Words {
    uint32_t low;
    uint32_t high;
  };

  static DSK_DEVICE Words fetch(const uint8_t* block, int input, int output, bool whole) {
    const int half = input / 8 % 2;
    const uint8_t* p = block + (static_cast<int64_t>(input / 16 * 3) * kBlockOutputs + output) * 4;
    return {word_at(p + half * 4 * kBlockOutputs, whole), word_at(p + 8 * kBlockOutputs, whole) >> (2 * half)};
  }
  static DSK_DEVICE uint32_t code(const Words& w, int i) {
    const int place = 8 * (i % 4) + 4 * (i / 4);
    return ((w.low >> place) & 0xfu) | ((w.high >> place) & 0x3u) << 4;
  }
};

template <class Format>
struct FloatWeights
    : std::conditional_t<Format::kBits == 8, Int8Weights, std::conditional_t<Format::kBits == 6, Bits6, Int4Weights>> {
  using Codes =
      std::conditional_t<Format::kBits == 8, Int8Weights, std::conditional_t<Format::kBits == 6, Bits6, Int4Weights>>;
  static constexpr float kZero = 0.0f;

  static DSK_DEVICE float value(const typename Codes::Words& w, int i, float) {
    return Format::decode(Codes::code(w, i), 0);
  }
};

// Calls body with the weights of a call; DS_BAD_ARGUMENT where bits and format are at odds.
template <typename Body>
inline int32_t with_integers(const ds_linear_args& a, const Body& body) {
  if (a.format != 0 || (a.bits != 8 && a.bits != 4)) return DS_BAD_ARGUMENT;
  return a.bits == 8 ? body(Int8Weights()) : body(Int4Weights());
}

template <typename Body>
inline int32_t with_weights(const ds_linear_args& a, const Body& body) {
  if (a.format == 0) return with_integers(a, body);
  return quant::with_format(a.format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    if constexpr (Format::kIsInteger) {
      return DS_BAD_ARGUMENT;
    } else {
      return a.bits == Format::kBits && a.zeros == nullptr ? body(FloatWeights<Format>()) : DS_BAD_ARGUMENT;
    }
  });
}

// y[row, output .. output + n) = totals * factor + bias, rounded to the dtype of y; n up to 4.
template <int kCount>
DSK_DEVICE void write_totals(const ds_linear_args& a, int64_t row, int64_t output, const float (&totals)[kCount],
                             float factor) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (output + i >= a.outputs) return;
    float value = totals[i] * factor;
    if (a.bias != nullptr) value += a.bias[output + i];
    set_float(a.dtype, a.y, row * a.outputs + output + i, value);
  }
}

}  // namespace dsk::matmul
