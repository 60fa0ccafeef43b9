// linear_w8a8: activations quantized row by row to int8, times int8 or int4 weights, added up in int32.
//
// Note [Integer products]
// Codes of weights are unsigned, activations signed, as the instructions want them: sum(code * x) - zero * sum(x) is
// exact in int32 (up to 131,072 inputs a group), in any order. So every instruction set gives the same bits: scales
// are applied to whole sums, group by group, with rounded products and sums.
#include "matmul/epilogue.h"
#include "matmul/rows.h"
#include "matmul/w8a8_tiles.h"
#include "quantize/formats.h"
#include "quantize/groups.h"

namespace dsk {
using namespace matmul;
using namespace quant;
namespace {

#if defined(__AVX512VNNI__)

constexpr int kXWords = 1;  // words of four inputs of x: the four bytes
struct Quads {
  Ints all;
};
DSK_INLINE Quads split(Ints codes) { return {codes}; }
DSK_INLINE Ints dot(Ints sum, Quads codes, const int32_t* x) {
  return _mm512_dpbusd_epi32(sum, codes.all, all_ints(x[0]));
}
DSK_INLINE void store_quad(const int8_t* q, int32_t* out) { std::memcpy(out, q, 4); }

#else

constexpr int kXWords = 2;  // inputs 0 and 2 as 16-bit integers, then 1 and 3
struct Quads {
  Ints even;
  Ints odd;
};
DSK_INLINE Quads split(Ints codes) {
  const Ints mask = all_ints(0x00ff00ff);
  return {both(codes, mask), both(shift_right(codes, 8), mask)};
}
DSK_INLINE Ints dot(Ints sum, Quads codes, const int32_t* x) {
  sum = add(sum, pair_products(codes.even, all_ints(x[0])));
  return add(sum, pair_products(codes.odd, all_ints(x[1])));
}
DSK_INLINE int32_t pair_of(int8_t low, int8_t high) {
  return static_cast<int32_t>((static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16) | static_cast<uint16_t>(low));
}
DSK_INLINE void store_quad(const int8_t* q, int32_t* out) {
  out[0] = pair_of(q[0], q[2]);
  out[1] = pair_of(q[1], q[3]);
}

#endif

class W8A8 {
 public:
  W8A8(const ds_linear_args& a, const ds_exec* exec) : a_(a), s_(shape_of(a)), exec_(exec) {
    Arena arena(exec->workspace);
    const int64_t rows = chunk_rows(a);
    q_ = arena.take<int8_t>(rows * padded());
    x_ = arena.take<int32_t>(rows * s_.inputs / 4 * kXWords);
    sums_ = arena.take<int32_t>(rows * s_.groups);
    factors_ = arena.take<float>(rows);
  }

  static uint64_t workspace(const ds_linear_args& a) {
    const Shape s = shape_of(a);
    const int64_t rows = chunk_rows(a);
    const int64_t bytes = round_up(rows * round_up(a.inputs, kInputUnit), 64) + round_up(rows * s.inputs * kXWords, 64);
    return static_cast<uint64_t>(bytes + round_up(rows * s.groups * 4, 64) + round_up(rows * 4, 64));
  }

  void run() {
    for (int64_t first = 0; first < a_.rows; first += kRowChunk) {
      const int64_t count = min64(kRowChunk, a_.rows - first);
      parallel_for(exec_, row_blocks(count), [&](int64_t block) { prepare(first, count, block); });
#if defined(DSK_TILES)
      if (count >= kTileRows && (s_.groups == 1 || s_.group_size % kInputUnit == 0)) {
        const int64_t filled = round_up(count, kTileRows);
        std::memset(q_ + count * padded(), 0, static_cast<size_t>((filled - count) * padded()));
        parallel_for(exec_, s_.panels, [&](int64_t panel) { run_tiles(panel, first, count); });
        continue;
      }
#endif
      parallel_for(exec_, s_.panels, [&](int64_t panel) {
        for (int64_t block = 0; block < row_blocks(count); ++block) {
          with_rows(rows_in_block(count, block), [&](auto rows) {
            a_.bits == 8 ? run_block<8, rows.value>(panel, first, block)
                         : run_block<4, rows.value>(panel, first, block);
          });
        }
      });
    }
  }

 private:
  static int64_t chunk_rows(const ds_linear_args& a) { return round_up(min64(a.rows, kRowChunk), 16); }
  int64_t padded() const { return round_up(a_.inputs, kInputUnit); }

  // Quantizes the rows of a block: q_ row by row, x_ as [input / 4][row], sums_ by group.
  void prepare(int64_t first, int64_t count, int64_t block) {
    const int rows = rows_in_block(count, block);
    int32_t* out = x_ + block * kRowBlock * s_.inputs / 4 * kXWords;
    for (int r = 0; r < rows; ++r) {
      const int64_t row = block * kRowBlock + r;
      int8_t* q = q_ + row * padded();
      factors_[row] = quantize_row((first + row) * a_.inputs, q);
      for (int64_t i = 0; i < s_.inputs / 4; ++i) store_quad(q + 4 * i, out + (i * rows + r) * kXWords);
      for (int64_t group = 0; group < s_.groups; ++group) {
        const int64_t end = min64((group + 1) * s_.group_size, s_.inputs);
        int32_t sum = 0;
        for (int64_t i = group * s_.group_size; i < end; ++i) sum += q[i];
        sums_[row * s_.groups + group] = sum;
      }
    }
  }

  // As quantize to symmetric int8 with one group; returns the scale.
  float quantize_row(int64_t start, int8_t* __restrict q) const {
    alignas(64) float buffer[kBlock];
    Range range;
    for_blocks(a_.inputs, [&](int64_t column, int64_t n) {
      widen(range, read_block(a_.dtype, a_.x, start + column, n, buffer), n);
    });
    std::memset(q, 0, static_cast<size_t>(padded()));
    float scale = float_of(range.magnitude) / Int8::kLargest;
    if (scale == 0.0f) scale = 1.0f;
    if (range.magnitude >= 0x7f800000u) return float_of(0x7fc00000u);  // one value that is not finite: a row of NaN
    for_blocks(a_.inputs, [&](int64_t column, int64_t n) {
      const float* __restrict x = read_block(a_.dtype, a_.x, start + column, n, buffer);
      int8_t* __restrict to = q + column;
      for (int64_t i = 0; i < n; ++i) {
        to[i] = static_cast<int8_t>(Int8::template encode<false>(x[i] / scale, 1 - Int8::kHalf, 0, 0u));
      }
    });
    return scale;
  }

  int64_t panel_outputs(int64_t panel) const { return min64(kPanel, s_.blocks * kBlockOutputs - panel * kPanel); }

  // Adds scale * (sums - zero * sum of x) of a group to totals, for `rows` rows and kLanes outputs.
  void fold(int64_t row, int rows, int64_t group, int64_t output, const int32_t* sums, int stride,
            float* totals) const {
    const int64_t place = group * s_.blocks * kBlockOutputs + output;
    Ints zero = all_ints(a_.bits == 8 ? 128 : 8);
    if (a_.zeros != nullptr) zero = add(zero, widen_bytes(a_.zeros + place));
    const Floats scale = load_floats(a_.scales + place);
    for (int r = 0; r < rows; ++r) {
      const Ints x_sum = all_ints(sums_[(row + r) * s_.groups + group]);
      const Floats exact = to_floats(subtract(load_ints(sums + r * stride), multiply(zero, x_sum)));
      float* total = totals + r * kPanel;
      store_floats(total, add(load_floats(total), multiply(scale, exact)));
    }
  }

  template <int kBits, int kRows>
  void run_block(int64_t panel, int64_t first, int64_t block) const {
    alignas(64) float totals[kRows * kPanel] = {};
    const int64_t outputs = panel_outputs(panel);
    for (int64_t group = 0; group < s_.groups; ++group) {
      for (int64_t tile = 0; tile < outputs; tile += kTile) add_group<kBits, kRows>(panel, tile, group, block, totals);
    }
    finish(panel, first, block * kRowBlock, kRows, totals);
  }

  template <int kBits, int kRows>
  void add_group(int64_t panel, int64_t tile, int64_t group, int64_t block, float* totals) const {
    constexpr int kStep = 32 / kBits;
    const int64_t output = panel * kPanel + tile;
    const int64_t valid = panel_outputs(panel) - tile;
    int64_t outputs[kVectors];  // those that are not there repeat the first
    const uint8_t* codes[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      outputs[v] = v * kLanes < valid ? output + v * kLanes : output;
      codes[v] = a_.codes + outputs[v] / kBlockOutputs * s_.block_bytes + outputs[v] % kBlockOutputs * 4;
    }
    Ints sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) sums[r][v] = all_ints(0);
    }
    const int64_t begin = group * s_.group_size;
    const int64_t end = min64(begin + s_.group_size, s_.inputs);
    const int32_t* x = x_ + (block * kRowBlock * s_.inputs / 4 + begin / 4 * kRows) * kXWords;
    for (int64_t input = begin; input < end; input += kStep) {
      Ints words[kVectors];
      for (int v = 0; v < kVectors; ++v) words[v] = load_ints(codes[v] + input / kStep * (4 * kBlockOutputs));
      for (int quad = 0; quad < kStep / 4; ++quad) {
        Quads parts[kVectors];
        for (int v = 0; v < kVectors; ++v) {
          const Ints shifted = quad == 0 ? words[v] : shift_right(words[v], 4);
          parts[v] = split(kBits == 8 ? shifted : both(shifted, all_ints(0x0f0f0f0f)));
        }
        for (int r = 0; r < kRows; ++r) {
          for (int v = 0; v < kVectors; ++v) sums[r][v] = dot(sums[r][v], parts[v], x + r * kXWords);
        }
        x += kRows * kXWords;
      }
    }
    alignas(64) int32_t kept[kRows * kTile];
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) store_ints(kept + r * kTile + v * kLanes, sums[r][v]);
    }
    for (int v = 0; v < kVectors; ++v) {
      fold(block * kRowBlock, kRows, group, outputs[v], kept + v * kLanes, kTile, totals + tile + v * kLanes);
    }
  }

  void finish(int64_t panel, int64_t first, int64_t row, int rows, const float* totals) const {
    const int64_t outputs = min64(kPanel, a_.outputs - panel * kPanel);
    for (int r = 0; r < rows; ++r) {
      write_row(a_, first + row + r, panel * kPanel, outputs, totals + r * kPanel, factors_[row + r]);
    }
  }

#if defined(DSK_TILES)
  // kTileRows rows at a time, and the four blocks of the panel; x and codes are read as they lie.
  void run_tiles(int64_t panel, int64_t first, int64_t count) const {
    alignas(64) float totals[kTileRows * kPanel];
    alignas(64) int32_t sums[kTileRows * kPanel];
    const TileScope scope;
    const int64_t blocks = panel_outputs(panel) / kBlockOutputs;
    const uint8_t* codes = a_.codes + panel * (kPanel / kBlockOutputs) * s_.block_bytes;
    for (int64_t row = 0; row < count; row += kTileRows) {
      const int rows = static_cast<int>(min64(kTileRows, count - row));
      std::memset(totals, 0, sizeof(totals));
      for (int64_t group = 0; group < s_.groups; ++group) {
        const int64_t begin = group * s_.group_size;
        const int64_t end = min64(begin + s_.group_size, padded());
        tile_sums(q_ + row * padded(), padded(), codes, s_.block_bytes, a_.bits, blocks, begin,
                  s_.groups == 1 ? padded() : end, sums);
        for (int64_t output = 0; output < blocks * kBlockOutputs; output += kLanes) {
          fold(row, rows, group, panel * kPanel + output, sums + output, kPanel, totals + output);
        }
      }
      finish(panel, first, row, rows, totals);
    }
  }
#endif

  const ds_linear_args& a_;
  const Shape s_;
  const ds_exec* exec_;
  int8_t* q_;
  int32_t* x_;
  int32_t* sums_;
  float* factors_;
};

}  // namespace

uint64_t linear_w8a8_workspace(const void* arguments) {
  return W8A8::workspace(*static_cast<const ds_linear_args*>(arguments));
}

int32_t linear_w8a8(const void* arguments, const ds_exec* exec) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  const int32_t status = check(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < linear_w8a8_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  W8A8(*a, exec).run();
  return DS_OK;
}

}  // namespace dsk
