// linear_weight_only: float activations times int8 or int4 weights.
//
// Note [Two ways through the weights]
// Few rows: codes become floats in registers, right before they are used, so the weights cross memory once and as
// codes. Many rows: a segment of codes becomes a tile of floats in the second-level cache, which all rows of a chunk
// use. Both do the same operations in the same order: a group is added up input by input with fma, then scaled and
// added to the total, so a row of y depends neither on the other rows nor on their number.
#include "matmul/epilogue.h"
#include "matmul/rows.h"
#include "row_split.h"

namespace dsk {
using namespace matmul;
namespace {

constexpr int64_t kSegment = 256;  // inputs of a tile of floats
constexpr int64_t kFewRows = 2 * kRowBlock;

// Codes of kTile outputs that become floats when they are asked for.
template <int kBits, bool kZeros>
struct Codes {
  static constexpr int kStep = 32 / kBits;            // inputs of a word
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

// A tile of floats: [input][kPanel].
struct Tile {
  static constexpr int kStep = 1;
  struct Words {
    Floats values[kVectors];
  };
  const float* tile;
  int64_t first;  // its first input

  DSK_INLINE Words fetch(int64_t input) const {
    Words w;
    for (int v = 0; v < kVectors; ++v) w.values[v] = load_floats(tile + (input - first) * kPanel + v * kLanes);
    return w;
  }
  template <int kInput>
  DSK_INLINE Floats value(const Words& w, int v) const {
    return w.values[v];
  }
};

template <int kRows, class Weights, int kInput>
DSK_INLINE void add_inputs(const Weights& weights, const typename Weights::Words& words, const float* x,
                           Floats (&sums)[kRows][kVectors]) {
  if constexpr (kInput < Weights::kStep) {
    Floats w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = weights.template value<kInput>(words, v);
    for (int r = 0; r < kRows; ++r) {
      const Floats each = all_floats(x[kInput * kRows + r]);
      for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(each, w[v], sums[r][v]);
    }
    add_inputs<kRows, Weights, kInput + 1>(weights, words, x, sums);
  }
}

// A part of a group: inputs [begin, end). The sums of a group that continues are kept in `partial`.
struct Part {
  int64_t begin;
  int64_t end;
  bool is_first;
  bool is_last;
  const float* scales;  // of the outputs of the register tile
};

// Adds a part for kRows rows and kTile outputs; x is [input][kRows], partial and totals are [row][kPanel].
template <int kRows, class Weights>
void add_part(const Weights& weights, const Part& part, const float* x, float* partial, float* totals) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = part.is_first ? all_floats(0.0f) : load_floats(partial + r * kPanel + v * kLanes);
    }
  }
  for (int64_t input = part.begin; input < part.end; input += Weights::kStep) {
    add_inputs<kRows, Weights, 0>(weights, weights.fetch(input), x + input * kRows, sums);
  }
  for (int v = 0; v < kVectors; ++v) {
    const Floats scale = load_floats(part.scales + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      float* kept = (part.is_last ? totals : partial) + r * kPanel + v * kLanes;
      store_floats(kept, part.is_last ? add(load_floats(kept), multiply(scale, sums[r][v])) : sums[r][v]);
    }
  }
}

class WeightOnly {
 public:
  WeightOnly(const ds_linear_args& a, const ds_exec* exec) : a_(a), s_(shape_of(a)), exec_(exec) {
    x_ = Arena(exec->workspace).take<float>(min64(a.rows, kRowChunk) * s_.inputs);
  }

  static uint64_t workspace(const ds_linear_args& a) {
    return static_cast<uint64_t>(round_up(min64(a.rows, kRowChunk) * shape_of(a).inputs * 4, 64));
  }

  void run() {
    for (int64_t first = 0; first < a_.rows; first += kRowChunk) {
      const int64_t count = min64(kRowChunk, a_.rows - first);
      parallel_for(exec_, row_blocks(count), [&](int64_t block) { prepare(first, count, block); });
      parallel_for(exec_, s_.panels, [&](int64_t panel) {
        if (a_.bits == 8) {
          a_.zeros != nullptr ? run_panel<8, true>(panel, first, count) : run_panel<8, false>(panel, first, count);
        } else {
          a_.zeros != nullptr ? run_panel<4, true>(panel, first, count) : run_panel<4, false>(panel, first, count);
        }
      });
    }
  }

 private:
  // Rows of a block as [input][row] float32, zeros at the end.
  void prepare(int64_t first, int64_t count, int64_t block) {
    alignas(64) float buffer[kBlock];
    const int rows = rows_in_block(count, block);
    float* out = x_ + block * kRowBlock * s_.inputs;
    for (int r = 0; r < rows; ++r) {
      const int64_t start = (first + block * kRowBlock + r) * a_.inputs;
      for_blocks(a_.inputs, [&](int64_t column, int64_t n) {
        const float* x = read_block(a_.dtype, a_.x, start + column, n, buffer);
        for (int64_t i = 0; i < n; ++i) out[(column + i) * rows + r] = x[i];
      });
      for (int64_t i = a_.inputs; i < s_.inputs; ++i) out[i * rows + r] = 0.0f;
    }
  }

  int64_t panel_outputs(int64_t panel) const { return min64(kPanel, (s_.blocks * kBlockOutputs) - panel * kPanel); }

  // The codes of kTile outputs from `output` on; `valid` outputs are there, the rest repeat the first.
  template <int kBits, bool kZeros>
  Codes<kBits, kZeros> codes_of(int64_t output, int64_t valid, int64_t group) const {
    Codes<kBits, kZeros> codes;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t mine = v * kLanes < valid ? output + v * kLanes : output;
      codes.at[v] = a_.codes + mine / kBlockOutputs * s_.block_bytes + mine % kBlockOutputs * 4;
      codes.zero[v] = all_floats(0.0f);
      if (kZeros) codes.zero[v] = to_floats(widen_bytes(a_.zeros + group * s_.blocks * kBlockOutputs + mine));
    }
    return codes;
  }

  template <int kBits, bool kZeros>
  void run_panel(int64_t panel, int64_t first, int64_t count) const {
    if (count <= kFewRows) {
      few_rows<kBits, kZeros>(panel, first, count);
    } else {
      many_rows<kBits, kZeros>(panel, first, count);
    }
  }

  // Scales of a group for the outputs of a panel, zeros where there are none.
  void read_scales(int64_t panel, int64_t group, float* scales) const {
    const float* from = a_.scales + group * s_.blocks * kBlockOutputs + panel * kPanel;
    const int64_t outputs = panel_outputs(panel);
    for (int64_t i = 0; i < outputs; ++i) scales[i] = from[i];
  }

  template <int kBits, bool kZeros>
  void few_rows(int64_t panel, int64_t first, int64_t count) const {
    alignas(64) float totals[kRowBlock * kPanel];
    alignas(64) float scales[kPanel] = {};
    const int64_t outputs = panel_outputs(panel);
    for (int64_t block = 0; block < row_blocks(count); ++block) {
      std::memset(totals, 0, sizeof(totals));
      const float* x = x_ + block * kRowBlock * s_.inputs;
      with_rows(rows_in_block(count, block), [&](auto rows) {
        for (int64_t group = 0; group < s_.groups; ++group) {
          const int64_t begin = group * s_.group_size;
          read_scales(panel, group, scales);
          for (int64_t tile = 0; tile < outputs; tile += kTile) {
            const Part part = {begin, min64(begin + s_.group_size, s_.inputs), true, true, scales + tile};
            add_part<rows.value>(codes_of<kBits, kZeros>(panel * kPanel + tile, outputs - tile, group), part, x,
                                 nullptr, totals + tile);
          }
        }
      });
      finish(panel, first, count, block, totals);
    }
  }

  template <int kBits, bool kZeros>
  void many_rows(int64_t panel, int64_t first, int64_t count) const {
    alignas(64) float tile[kSegment * kPanel];
    alignas(64) float partial[kRowChunk * kPanel];
    alignas(64) float totals[kRowChunk * kPanel];
    alignas(64) float scales[kPanel] = {};
    const int64_t outputs = panel_outputs(panel);
    std::memset(totals, 0, static_cast<size_t>(count) * kPanel * sizeof(float));
    for (int64_t group = 0; group < s_.groups; ++group) {
      const int64_t start = group * s_.group_size;
      const int64_t stop = min64(start + s_.group_size, s_.inputs);
      read_scales(panel, group, scales);
      for (int64_t begin = start; begin < stop; begin += kSegment) {
        const int64_t end = min64(begin + kSegment, stop);
        for (int64_t t = 0; t < outputs; t += kTile) {
          fill_tile(codes_of<kBits, kZeros>(panel * kPanel + t, outputs - t, group), begin, end, tile + t);
        }
        for (int64_t block = 0; block < row_blocks(count); ++block) {
          const float* x = x_ + block * kRowBlock * s_.inputs;
          const int64_t row = block * kRowBlock * kPanel;
          with_rows(rows_in_block(count, block), [&](auto rows) {
            for (int64_t t = 0; t < outputs; t += kTile) {
              const Part part = {begin, end, begin == start, end == stop, scales + t};
              add_part<rows.value>(Tile{tile + t, begin}, part, x, partial + row + t, totals + row + t);
            }
          });
        }
      }
    }
    for (int64_t block = 0; block < row_blocks(count); ++block) {
      finish(panel, first, count, block, totals + block * kRowBlock * kPanel);
    }
  }

  template <class Weights, int kInput>
  static DSK_INLINE void fill_inputs(const Weights& codes, const typename Weights::Words& words, float* tile) {
    if constexpr (kInput < Weights::kStep) {
      for (int v = 0; v < kVectors; ++v) {
        store_floats(tile + kInput * kPanel + v * kLanes, codes.template value<kInput>(words, v));
      }
      fill_inputs<Weights, kInput + 1>(codes, words, tile);
    }
  }

  template <class Weights>
  static void fill_tile(const Weights& codes, int64_t begin, int64_t end, float* tile) {
    for (int64_t input = begin; input < end; input += Weights::kStep) {
      fill_inputs<Weights, 0>(codes, codes.fetch(input), tile + (input - begin) * kPanel);
    }
  }

  void finish(int64_t panel, int64_t first, int64_t count, int64_t block, const float* totals) const {
    const int64_t outputs = min64(kPanel, a_.outputs - panel * kPanel);
    for (int r = 0; r < rows_in_block(count, block); ++r) {
      write_row(a_, first + block * kRowBlock + r, panel * kPanel, outputs, totals + r * kPanel, 1.0f);
    }
  }

  const ds_linear_args& a_;
  const Shape s_;
  const ds_exec* exec_;
  float* x_;
};

}  // namespace

uint64_t linear_weight_only_workspace(const void* arguments) {
  return WeightOnly::workspace(*static_cast<const ds_linear_args*>(arguments));
}

int32_t linear_weight_only(const void* arguments, const ds_exec* exec) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  const int32_t status = check(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < linear_weight_only_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  WeightOnly(*a, exec).run();
  return DS_OK;
}

}  // namespace dsk
