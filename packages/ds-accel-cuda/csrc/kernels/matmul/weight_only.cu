// linear_weight_only: float activations times quantized weights.
//
// Note [Order of a row]
// A row of y has the same bits whatever rows are beside it, so both ways through the weights add up in one order: the
// inputs are cut into chunks of kChunk; within a chunk fma adds input by input, the weight with its scale already; the
// chunks follow each other. Few rows: a thread a chunk, and the weights cross memory once, as codes. Many rows: a tile
// of codes becomes a tile of floats in shared memory, and a thread adds up its rows and outputs chunk by chunk.
#include "matmul/rows.h"
#include "matmul/tile.h"

namespace dsk {
using namespace matmul;
namespace {

constexpr int kChunk = 128;
constexpr int kFewRows = 8;

// --- few rows: 16 outputs a block, as many chunks at a time as it has sixteens of threads
// -----------------------------

constexpr int kSlots = 16;
// Eights of weights that a thread asks for before it uses the first, as registers allow.
template <int kRows>
constexpr int kAhead = kRows < 4 ? 8 : 4;

// The inputs of chunks, for each row; padded so that the chunks of a warp lie in different banks.
template <int kRows>
using Staged = Four<float>[kRows][kSlots][kChunk / 4 + 1];

// The inputs of `slots` chunks, as floats in shared memory; zeros where there is none.
template <int kRows>
DSK_DEVICE void stage_rows(const ds_linear_args& a, int64_t row, int64_t begin, int slots, Staged<kRows>& x) {
  constexpr int kEights = kChunk / kVector;
  for (int i = threadIdx.x; i < kRows * slots * kEights; i += blockDim.x) {
    const int eight = i % kEights;
    const int slot = i / kEights % slots;
    const int r = i / kEights / slots;
    const int64_t input = begin + slot * kChunk + eight * kVector;
    float values[kVector] = {};
    if (row + r < a.rows && input < a.inputs) {
      load8(a.dtype, a.x, (row + r) * a.inputs + input, a.inputs - input, values);
    }
#pragma unroll
    for (int j = 0; j < kVector; ++j) x[r][slot][2 * eight + j / 4].values[j % 4] = values[j];
  }
}

// The scale and the zero point of an output as the inputs go on.
class Group {
 public:
  DSK_DEVICE Group(const ds_linear_args& a, const Layout& s, int input, int64_t output, float code_zero)
      : a_(a), s_(s), code_zero_(code_zero) {
    const int group = input / s.group_size;
    end_ = (group + 1) * s.group_size;
    place_ = group * s.padded_outputs + output;
    read();
  }
  DSK_DEVICE void move_to(int input) {
    if (input < end_) return;
    end_ += s_.group_size;
    place_ += s_.padded_outputs;
    read();
  }
  DSK_DEVICE float scale() const { return scale_; }
  DSK_DEVICE float zero() const { return zero_; }

 private:
  DSK_DEVICE void read() {
    scale_ = a_.scales[place_];
    zero_ = code_zero_ + (a_.zeros != nullptr ? static_cast<float>(a_.zeros[place_]) : 0.0f);
  }
  const ds_linear_args& a_;
  const Layout& s_;
  const float code_zero_;
  int end_;
  int64_t place_;
  float scale_;
  float zero_;
};

// Adds n of eight inputs to the sums of kRows rows.
template <class Weights, int kRows>
DSK_DEVICE void add_eight(const typename Weights::Words& words, const Group& group, int n, const Staged<kRows>& x,
                          int slot, int at, float (&sums)[kRows]) {
  float weights[kVector];
#pragma unroll
  for (int j = 0; j < kVector; ++j) weights[j] = Weights::value(words, j, group.zero()) * group.scale();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    float values[kVector];
    read_line(x[r][slot], at, values);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      if (j < n) sums[r] = fmaf(values[j], weights[j], sums[r]);
    }
  }
}

template <class Weights, int kRows>
DSK_DEVICE void add_chunk(const ds_linear_args& a, const Layout& s, int begin, int64_t output, const Staged<kRows>& x,
                          int slot, float (&sums)[kRows]) {
  const int end = begin + kChunk < s.inputs ? begin + kChunk : s.inputs;
  const uint8_t* block = a.codes + output / kBlockOutputs * s.block_bytes;
  const int lane = static_cast<int>(output % kBlockOutputs);
  Group group(a, s, begin, output, Weights::kZero);
  constexpr int kEights = kAhead<kRows>;
  int input = begin;
#pragma unroll 1
  for (; input + kEights * kVector <= end; input += kEights * kVector) {
    typename Weights::Words words[kEights];
#pragma unroll
    for (int i = 0; i < kEights; ++i) words[i] = Weights::fetch(block, input + i * kVector, lane, s.whole_words);
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const int here = input + i * kVector;
      group.move_to(here);
      add_eight<Weights, kRows>(words[i], group, kVector, x, slot, here - begin, sums);
    }
  }
#pragma unroll 1
  for (; input < end; input += kVector) {
    group.move_to(input);
    const typename Weights::Words words = Weights::fetch(block, input, lane, s.whole_words);
    add_eight<Weights, kRows>(words, group, end - input, x, slot, input - begin, sums);
  }
}

template <class Weights, int kRows>
__global__ void __launch_bounds__(kSlots* kBlockOutputs, 2) few_rows(ds_linear_args a, Layout s) {
  DSK_SHARED(Four<float>, x, [kRows][kSlots][kChunk / 4 + 1]);
  DSK_SHARED(float, partial, [kSlots][kRows][kBlockOutputs]);
  const int slots = static_cast<int>(blockDim.x) / kBlockOutputs;
  const int lane = static_cast<int>(threadIdx.x) % kBlockOutputs;
  const int slot = static_cast<int>(threadIdx.x) / kBlockOutputs;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kBlockOutputs + lane;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kRows;
  float total[1] = {};  // of row `slot`, where that is below kRows
  for (int64_t begin = 0; begin < s.inputs; begin += static_cast<int64_t>(slots) * kChunk) {
    stage_rows<kRows>(a, row, begin, slots, x);
    __syncthreads();
    float sums[kRows] = {};
    const int64_t first = begin + static_cast<int64_t>(slot) * kChunk;
    if (first < s.inputs) add_chunk<Weights, kRows>(a, s, static_cast<int>(first), output, x, slot, sums);
#pragma unroll
    for (int r = 0; r < kRows; ++r) partial[slot][r][lane] = sums[r];
    __syncthreads();
    if (slot < kRows) {
      for (int i = 0; i < slots && begin + static_cast<int64_t>(i) * kChunk < s.inputs; ++i) {
        total[0] += partial[i][slot][lane];
      }
    }
  }
  if (slot < kRows && row + slot < a.rows) write_totals(a, row + slot, output, total, 1.0f);
}

template <class Weights, int kRows>
int32_t run_few(const ds_linear_args& a, const Layout& s, const ds_exec* exec) {
  int slots = 4;
  while (slots < kSlots && slots * kChunk < s.inputs) slots *= 2;
  const dim3 grid(static_cast<unsigned>(s.padded_outputs / kBlockOutputs),
                  static_cast<unsigned>(ceil_div(a.rows, kRows)));
  return launch(exec, Shape(grid, slots * kBlockOutputs), few_rows<Weights, kRows>, a, s);
}

// --- many rows: a tile of kTileRows x kTileOutputs a block
// -------------------------------------------------------------

constexpr int kTileInputs = 32;
constexpr int kEights = kTileInputs / kVector;

// What a thread moves of a tile: from memory to registers, while the tile before is still in use, and on from there.
template <class Weights, int kTileRows>
class Mover {
 public:
  static constexpr int kWeightUnits = kTileOutputs * kEights / kTileThreads;
  static constexpr int kRowUnits = kTileRows * kEights / kTileThreads;

  DSK_DEVICE Mover(const ds_linear_args& a, const Layout& s, int64_t row, int64_t output)
      : a_(a), s_(s), row_(row), output_(output) {}

  DSK_DEVICE void fetch(int begin) {
#pragma unroll
    for (int i = 0; i < kWeightUnits; ++i) {
      const int input = begin + unit_line(i, kTileOutputs) * kVector;
      const int64_t output = output_ + unit_place(i, kTileOutputs);
      words_[i] = {};
      scale_[i] = 0.0f;
      zero_[i] = 0.0f;
      inputs_[i] = output < s_.padded_outputs ? s_.inputs - input : 0;
      if (inputs_[i] <= 0) continue;
      words_[i] = Weights::fetch(a_.codes + output / kBlockOutputs * s_.block_bytes, input,
                                 static_cast<int>(output % kBlockOutputs), s_.whole_words);
      const int64_t place = input / s_.group_size * s_.padded_outputs + output;
      scale_[i] = a_.scales[place];
      if (a_.zeros != nullptr) zero_[i] = static_cast<float>(a_.zeros[place]);
    }
#pragma unroll
    for (int i = 0; i < kRowUnits; ++i) {
      const int input = begin + unit_line(i, kTileRows) * kVector;
      const int64_t row = row_ + unit_place(i, kTileRows);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x_[i][j] = 0.0f;
      if (row < a_.rows && input < s_.inputs) {
        load8(a_.dtype, a_.x, row * a_.inputs + input, s_.inputs - input, x_[i]);
      }
    }
  }

  DSK_DEVICE void store(Four<float> (&w)[kTileInputs][kTileOutputs / 4],
                        Four<float> (&x)[kTileInputs][kTileRows / 4]) const {
#pragma unroll
    for (int i = 0; i < kWeightUnits; ++i) {
      const int output = unit_place(i, kTileOutputs);
#pragma unroll
      for (int j = 0; j < kVector; ++j) {
        const float weight = Weights::value(words_[i], j, Weights::kZero + zero_[i]) * scale_[i];
        w[unit_line(i, kTileOutputs) * kVector + j][output / 4].values[output % 4] = j < inputs_[i] ? weight : 0.0f;
      }
    }
#pragma unroll
    for (int i = 0; i < kRowUnits; ++i) {
      const int row = unit_place(i, kTileRows);
#pragma unroll
      for (int j = 0; j < kVector; ++j) x[unit_line(i, kTileRows) * kVector + j][row / 4].values[row % 4] = x_[i][j];
    }
  }

 private:
  const ds_linear_args& a_;
  const Layout& s_;
  const int64_t row_;
  const int64_t output_;
  typename Weights::Words words_[kWeightUnits];
  float scale_[kWeightUnits];
  float zero_[kWeightUnits];
  int inputs_[kWeightUnits];  // from the first of the eight on
  float x_[kRowUnits][kVector];
};

// sums += x * w over the inputs of a tile, one after the other.
template <int kTileRows>
DSK_DEVICE void add_tile(const Four<float> (&w)[kTileInputs][kTileOutputs / 4],
                         const Four<float> (&x)[kTileInputs][kTileRows / 4],
                         float (&sums)[kThreadRows<kTileRows>][kThreadOutputs]) {
#pragma unroll 8
  for (int k = 0; k < kTileInputs; ++k) {
    float weights[kThreadOutputs];
    float values[kThreadRows<kTileRows>];
    read_line(w[k], first_output(), weights);
    read_line(x[k], first_row<kTileRows>(), values);
#pragma unroll
    for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
#pragma unroll
      for (int o = 0; o < kThreadOutputs; ++o) sums[r][o] = fmaf(values[r], weights[o], sums[r][o]);
    }
  }
}

template <class Weights, int kTileRows>
__global__ void __launch_bounds__(kTileThreads) many_rows(ds_linear_args a, Layout s) {
  DSK_SHARED(Four<float>, w, [kTileInputs][kTileOutputs / 4]);
  DSK_SHARED(Four<float>, x, [kTileInputs][kTileRows / 4]);
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kTileOutputs;
  const int64_t step = static_cast<int64_t>(gridDim.y) * kTileRows;
  for (int64_t row = static_cast<int64_t>(blockIdx.y) * kTileRows; row < a.rows; row += step) {
    float totals[kThreadRows<kTileRows>][kThreadOutputs] = {};
    float sums[kThreadRows<kTileRows>][kThreadOutputs] = {};
    Mover<Weights, kTileRows> mover(a, s, row, output);
    mover.fetch(0);
    for (int begin = 0; begin < s.inputs; begin += kTileInputs) {
      const int next = begin + kTileInputs;
      mover.store(w, x);
      __syncthreads();
      if (next < s.inputs) mover.fetch(next);
      add_tile<kTileRows>(w, x, sums);
      __syncthreads();
      if (next % kChunk != 0 && next < s.inputs) continue;
#pragma unroll
      for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
#pragma unroll
        for (int o = 0; o < kThreadOutputs; ++o) {
          totals[r][o] += sums[r][o];
          sums[r][o] = 0.0f;
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
      const int64_t mine = row + first_row<kTileRows>() + r;
      if (mine < a.rows) write_totals(a, mine, output + first_output(), totals[r], 1.0f);
    }
  }
}

template <class Weights, int kTileRows>
int32_t run_many(const ds_linear_args& a, const Layout& s, const ds_exec* exec) {
  return launch(exec, tile_shape<kTileRows>(a), many_rows<Weights, kTileRows>, a, s);
}

}  // namespace

int32_t linear_weight_only(const void* arguments, const ds_exec* exec) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  const int32_t status = check(a, exec);
  if (status != DS_OK || a->rows == 0 || a->outputs == 0) return status;
  const Layout s = layout_of(*a);
  return with_weights(*a, [&](auto tag) -> int32_t {
    using Weights = decltype(tag);
    if (a->rows == 1) return run_few<Weights, 1>(*a, s, exec);
    if (a->rows == 2) return run_few<Weights, 2>(*a, s, exec);
    if (a->rows <= kFewRows) return run_few<Weights, 4>(*a, s, exec);
    return a->rows <= 32 ? run_many<Weights, 32>(*a, s, exec) : run_many<Weights, 64>(*a, s, exec);
  });
}

}  // namespace dsk
