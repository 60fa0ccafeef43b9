// linear_weight_only: float activations times int8 or int4 weights.
//
// Note [Two ways through the weights]
// Few rows: codes become floats in registers, right before they are used, so the weights cross memory once and as
// codes. Many rows: a segment of codes becomes a tile of floats in the second-level cache, which all rows of a chunk
// use. Both do the same operations in the same order: a group is added up input by input with fma, then scaled and
// added to the total, so a row of y depends neither on the other rows nor on their number.
#include "matmul/epilogue.h"
#include "matmul/rows.h"
#include "matmul/weights.h"
#include "row_split.h"

namespace dsk {
using namespace matmul;
namespace {

constexpr int64_t kSegment = 256;  // inputs of a tile of floats
constexpr int64_t kFewRows = 2 * kRowBlock;

template <int kRows, class Weights, int kItem>
DSK_INLINE void add_items(const Weights& weights, const typename Weights::Words& words, const float* x,
                          Floats (&sums)[kRows][kVectors]) {
  if constexpr (kItem < Weights::kItems) {
    typename Weights::Inputs::Value w[kVectors];
    for (int v = 0; v < kVectors; ++v) w[v] = weights.template value<kItem>(words, v);
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = Weights::Inputs::add_product(x + kItem * kRows + r, w[v], sums[r][v]);
      }
    }
    add_items<kRows, Weights, kItem + 1>(weights, words, x, sums);
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

// Adds a part for kRows rows and kTile outputs; x is [item][kRows], partial and totals are [row][kPanel].
template <int kRows, class Weights>
void add_part(const Weights& weights, const Part& part, const float* x, float* partial, float* totals) {
  Floats sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = part.is_first ? all_floats(0.0f) : load_floats(partial + r * kPanel + v * kLanes);
    }
  }
  for (int64_t input = part.begin; input < part.end; input += Weights::kStep) {
    const float* items = x + input / Weights::Inputs::kInputs * kRows;
    add_items<kRows, Weights, 0>(weights, weights.fetch(input), items, sums);
  }
  for (int v = 0; v < kVectors; ++v) {
    const Floats scale = load_floats(part.scales + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      float* kept = (part.is_last ? totals : partial) + r * kPanel + v * kLanes;
      store_floats(kept, part.is_last ? add(load_floats(kept), multiply(scale, sums[r][v])) : sums[r][v]);
    }
  }
}

template <class Way>
class WeightOnly {
 public:
  WeightOnly(const ds_linear_args& a, const ds_exec* exec) : a_(a), s_(shape_of(a)), exec_(exec) {
    x_ = Arena(exec->workspace).take<float>(min64(a.rows, kRowChunk) * s_.inputs);
  }

  static uint64_t workspace(const ds_linear_args& a) {
    const int64_t in_tiles = round_up(min64(a.rows, kRowChunk), 16) * round_up(a.inputs, kInputUnit) * 2;
    return static_cast<uint64_t>(round_up(max64(min64(a.rows, kRowChunk) * shape_of(a).inputs * 4, in_tiles), 64));
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

#if defined(DSK_TILES)
  // Whether groups end with the inputs of a tile, and there are rows for one.
  static bool fits_tiles(const ds_linear_args& a) {
    const Shape s = shape_of(a);
    return a.dtype == DS_BF16 && a.rows >= kTileRows && (s.groups == 1 || s.group_size % kTileInputs == 0);
  }

  void run_in_tiles() {
    for (int64_t first = 0; first < a_.rows; first += kRowChunk) {
      const int64_t count = min64(kRowChunk, a_.rows - first);
      parallel_for(exec_, round_up(count, kTileRows), [&](int64_t row) {
        float* out = x_ + row * tile_stride();
        if (row < count) {
          Way::prepare_row(a_, 2 * tile_stride(), (first + row) * a_.inputs, 1, out);
        } else {
          std::memset(out, 0, static_cast<size_t>(tile_stride()) * 4);
        }
      });
      parallel_for(exec_, s_.panels, [&](int64_t panel) {
        if (a_.bits == 8) {
          a_.zeros != nullptr ? panel_in_tiles<8, true>(panel, first, count)
                              : panel_in_tiles<8, false>(panel, first, count);
        } else {
          a_.zeros != nullptr ? panel_in_tiles<4, true>(panel, first, count)
                              : panel_in_tiles<4, false>(panel, first, count);
        }
      });
    }
  }
#endif

 private:
  static constexpr int64_t kInputs = Way::Inputs::kInputs;  // of an item

  // Rows of a block as [item][row], zeros at the end.
  void prepare(int64_t first, int64_t count, int64_t block) {
    const int rows = rows_in_block(count, block);
    float* out = x_ + block * kRowBlock * s_.inputs / kInputs;
    for (int r = 0; r < rows; ++r) {
      const int64_t start = (first + block * kRowBlock + r) * a_.inputs;
      Way::prepare_row(a_, s_.inputs, start, rows, out + r);
    }
  }

  int64_t panel_outputs(int64_t panel) const { return min64(kPanel, (s_.blocks * kBlockOutputs) - panel * kPanel); }

  // The codes of kTile outputs from `output` on; `valid` outputs are there, the rest repeat the first.
  template <int kBits, bool kZeros>
  typename Way::template Codes<kBits, kZeros> codes_of(int64_t output, int64_t valid, int64_t group) const {
    typename Way::template Codes<kBits, kZeros> codes;
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
      const float* x = x_ + block * kRowBlock * s_.inputs / kInputs;
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
    alignas(64) float tile[kSegment / kInputs * kPanel];
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
          const float* x = x_ + block * kRowBlock * s_.inputs / kInputs;
          const int64_t row = block * kRowBlock * kPanel;
          with_rows(rows_in_block(count, block), [&](auto rows) {
            for (int64_t t = 0; t < outputs; t += kTile) {
              const Part part = {begin, end, begin == start, end == stop, scales + t};
              add_part<rows.value>(Tile<typename Way::Inputs>{tile + t, begin}, part, x, partial + row + t,
                                   totals + row + t);
            }
          });
        }
      }
    }
    for (int64_t block = 0; block < row_blocks(count); ++block) {
      finish(panel, first, count, block, totals + block * kRowBlock * kPanel);
    }
  }

  template <class Weights, int kItem>
  static DSK_INLINE void fill_items(const Weights& codes, const typename Weights::Words& words, float* tile) {
    if constexpr (kItem < Weights::kItems) {
      for (int v = 0; v < kVectors; ++v) {
        Way::Inputs::store(tile + kItem * kPanel + v * kLanes, codes.template value<kItem>(words, v));
      }
      fill_items<Weights, kItem + 1>(codes, words, tile);
    }
  }

  template <class Weights>
  static void fill_tile(const Weights& codes, int64_t begin, int64_t end, float* tile) {
    for (int64_t input = begin; input < end; input += Weights::kStep) {
      fill_items<Weights, 0>(codes, codes.fetch(input), tile + (input - begin) / kInputs * kPanel);
    }
  }

#if defined(DSK_TILES)
  static constexpr int64_t kTileInputs = 32;

  // Items of a row of x.
  int64_t tile_stride() const { return round_up(a_.inputs, kInputUnit) / 2; }

  // As many_rows, kTileRows rows at a time.
  template <int kBits, bool kZeros>
  void panel_in_tiles(int64_t panel, int64_t first, int64_t count) const {
    alignas(64) float tile[kSegment / 2 * kPanel];
    alignas(64) float partial[kRowChunk * kPanel];
    alignas(64) float totals[kRowChunk * kPanel];
    alignas(64) float scales[kPanel] = {};
    const TileScope scope;
    const int64_t outputs = panel_outputs(panel);
    std::memset(tile, 0, sizeof(tile));
    std::memset(totals, 0, sizeof(totals));
    for (int64_t group = 0; group < s_.groups; ++group) {
      const int64_t start = group * s_.group_size;
      const int64_t stop = s_.groups == 1 ? 2 * tile_stride() : min64(start + s_.group_size, 2 * tile_stride());
      read_scales(panel, group, scales);
      for (int64_t begin = start; begin < stop; begin += kSegment) {
        const int64_t end = min64(begin + kSegment, stop);
        for (int64_t t = 0; t < outputs; t += kTile) {
          fill_tile(codes_of<kBits, kZeros>(panel * kPanel + t, outputs - t, group), begin, end, tile + t);
        }
        for (int64_t row = 0; row < count; row += kTileRows) {
          add_tiles(x_ + row * tile_stride() + begin / 2, tile, (end - begin) / 2, begin == start,
                    partial + row * kPanel);
        }
      }
      for (int64_t i = 0; i < count * kPanel; ++i) totals[i] += scales[i % kPanel] * partial[i];
    }
    for (int64_t block = 0; block < row_blocks(count); ++block) {
      finish(panel, first, count, block, totals + block * kRowBlock * kPanel);
    }
  }

  // Adds `items` items to the sums of kTileRows rows, or begins them.
  void add_tiles(const float* x, const float* tile, int64_t items, bool is_first, float* sums) const {
    constexpr int64_t kStride = kPanel * 4;
    if (is_first) {
      zero_tile<0>();
      zero_tile<1>();
      zero_tile<2>();
      zero_tile<3>();
    } else {
      load_tile<0>(sums, kStride);
      load_tile<1>(sums + 16, kStride);
      load_tile<2>(sums + 32, kStride);
      load_tile<3>(sums + 48, kStride);
    }
    for (int64_t item = 0; item < items; item += kTileInputs / 2) {
      const float* right = tile + item * kPanel;
      load_tile<4>(x + item, tile_stride() * 4);
      load_tile<5>(right, kStride);
      add_bf16_products<0, 4, 5>();
      load_tile<6>(right + 16, kStride);
      add_bf16_products<1, 4, 6>();
      load_tile<7>(right + 32, kStride);
      add_bf16_products<2, 4, 7>();
      load_tile<5>(right + 48, kStride);
      add_bf16_products<3, 4, 5>();
    }
    store_tile<0>(sums, kStride);
    store_tile<1>(sums + 16, kStride);
    store_tile<2>(sums + 32, kStride);
    store_tile<3>(sums + 48, kStride);
  }
#endif

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
  return WeightOnly<Single>::workspace(*static_cast<const ds_linear_args*>(arguments));
}

int32_t linear_weight_only(const void* arguments, const ds_exec* exec) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  const int32_t status = check(a, exec);
  if (status != DS_OK) return status;
  if (exec->workspace_bytes < linear_weight_only_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
#if defined(DSK_TILES)
  if (WeightOnly<Paired>::fits_tiles(*a)) {
    WeightOnly<Paired>(*a, exec).run_in_tiles();
    return DS_OK;
  }
#endif
#if defined(__AVX512BF16__)
  if (a->dtype == DS_BF16) {
    WeightOnly<Paired>(*a, exec).run();
    return DS_OK;
  }
#endif
  WeightOnly<Single>(*a, exec).run();
  return DS_OK;
}

}  // namespace dsk
