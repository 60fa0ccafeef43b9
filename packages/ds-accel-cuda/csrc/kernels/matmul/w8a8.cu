// linear_w8a8: activations quantized row by row to int8, times int8 or int4 weights, added up in int32.
//
// Note [Integer products]
// sum(w * x) - zero * sum(x) of a group is exact in int32 (up to 131,072 inputs), so its inputs may be added in any
// order, four at a time. Scales are applied to whole sums, group by group in order, with rounded products and sums. So
// both ways through the weights, and every other library, give the same bits.
#include "matmul/rows.h"
#include "matmul/tile.h"
#include "quantize/scales.h"
#include "team.h"

namespace dsk {
using namespace matmul;
namespace {

constexpr int64_t kRowChunk = 4096;  // rows that are quantized at once; bounds the workspace
constexpr int kFewRows = 8;

// The rows of x as integers, in the workspace.
struct QuantizedRows {
  int8_t* q;       // [rows, inputs filled up with zeros to a multiple of kInputUnit]
  int32_t* sums;   // [rows, groups]: of q
  float* factors;  // [rows]: NaN for a row with a value that is not finite
  int64_t pitch;   // of q
};

int64_t pitch_of(const ds_linear_args& a) { return ceil_div(a.inputs, kInputUnit) * kInputUnit; }

QuantizedRows rows_in(void* workspace, const ds_linear_args& a, const Layout& s) {
  const int64_t rows = min64(a.rows, kRowChunk);
  QuantizedRows found = {};
  found.pitch = pitch_of(a);
  found.q = static_cast<int8_t*>(workspace);
  found.sums = reinterpret_cast<int32_t*>(found.q + rows * found.pitch);
  found.factors = reinterpret_cast<float*>(found.sums + rows * s.groups);
  return found;
}

// --- the rows
// ----------------------------------------------------------------------------------------------------------

// As quantize to symmetric int8 with one group, a block a row.
__global__ void __launch_bounds__(kThreads) quantize_rows(ds_linear_args a, Layout s, QuantizedRows out, int width) {
  const int64_t row = blockIdx.x;
  const int64_t start = row * a.inputs;
  quant::Range range;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kVector; i < a.inputs; i += blockDim.x * kVector) {
    float x[kVector];
    load8(a.dtype, a.x, start + i, a.inputs - i, x);
    quant::widen(range, x, false);
  }
  range.magnitude = block_reduce(range.magnitude, quant::Larger(), 0u);
  const quant::Scale scale = quant::scale_of<quant::Int8>(range, DS_SCALING_SYMMETRIC);
  if (threadIdx.x == 0) out.factors[row] = scale.finite ? scale.scale : float_of(0x7fc00000u);
  int8_t* q = out.q + row * out.pitch;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kVector; i < out.pitch; i += blockDim.x * kVector) {
    float x[kVector] = {};
    if (i < a.inputs) load8(a.dtype, a.x, start + i, a.inputs - i, x);
    uint64_t codes = 0;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const uint32_t code = quant::Int8::encode<false>(x[j] / scale.scale, scale.lowest, 0, 0u);
      codes |= static_cast<uint64_t>(code) << (8 * j);
    }
    *reinterpret_cast<uint64_t*>(q + i) = scale.finite ? codes : 0;
  }
  __syncthreads();
  // Sums of groups, `width` lanes each.
  const int teams = static_cast<int>(blockDim.x) / width;
  const int lane = static_cast<int>(threadIdx.x) % width;
  for (int first = 0; first < s.groups; first += teams) {
    const int group = first + static_cast<int>(threadIdx.x) / width;
    const int64_t begin = static_cast<int64_t>(group) * s.group_size;
    const int64_t end = group < s.groups ? min64(begin + s.group_size, out.pitch) : begin;
    int32_t sum = 0;
    for (int64_t i = begin + 4 * lane; i < end; i += 4 * width) {
      sum = dot4(*reinterpret_cast<const int32_t*>(q + i), 0x01010101, sum);
    }
    sum = warp_reduce(sum, Add(), width);
    if (lane == 0 && group < s.groups) out.sums[row * s.groups + group] = sum;
  }
}

int32_t quantize_all(const ds_linear_args& a, const Layout& s, const QuantizedRows& out, const ds_exec* exec) {
  const int threads = a.inputs <= 64 * kVector ? 64 : kThreads;
  int width = 1;
  while (width < kLanes && width * kVector < s.group_size) width *= 2;
  return launch(exec, Shape(static_cast<unsigned>(a.rows), threads), quantize_rows, a, s, out, width);
}

// The scale and the zero point of a group of an output.
struct GroupScale {
  float scale;
  int32_t zero;
};

template <class Weights>
DSK_DEVICE GroupScale scale_of_group(const ds_linear_args& a, const Layout& s, int group, int64_t output) {
  const int64_t place = group * s.padded_outputs + output;
  return {a.scales[place], Weights::kQuadZero + (a.zeros != nullptr ? a.zeros[place] : 0)};
}

// total + scale * (sum - zero * sum of x).
DSK_DEVICE float add_group(const GroupScale& g, int32_t x_sum, int32_t sum, float total) {
  const uint32_t shift = static_cast<uint32_t>(g.zero) * static_cast<uint32_t>(x_sum);
  return total + g.scale * static_cast<float>(static_cast<int32_t>(static_cast<uint32_t>(sum) - shift));
}

// --- few rows: 16 outputs a block, as many pieces of groups at a time as it has sixteens of threads
// --------------------

constexpr int kSlots = 16;
constexpr int kPiece = 128;  // inputs of a group

template <class Weights, int kRows>
DSK_DEVICE void add_piece(const ds_linear_args& a, const Layout& s, const QuantizedRows& rows, int64_t row, int begin,
                          int end, int64_t output, int32_t (&sums)[kRows]) {
  const uint8_t* block = a.codes + output / kBlockOutputs * s.block_bytes;
#pragma unroll 4
  for (int input = begin; input < end; input += kVector) {
    const typename Weights::Words words =
        Weights::fetch(block, input, static_cast<int>(output % kBlockOutputs), s.whole_words);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (row + r >= a.rows) break;
      const Pack<int32_t, 2> x = *reinterpret_cast<const Pack<int32_t, 2>*>(rows.q + (row + r) * rows.pitch + input);
      sums[r] = dot4(Weights::quad(words, 0), x.values[0], sums[r]);
      sums[r] = dot4(Weights::quad(words, 1), x.values[1], sums[r]);
    }
  }
}

template <class Weights, int kRows>
__global__ void __launch_bounds__(kSlots* kBlockOutputs, 3) few_rows(ds_linear_args a, Layout s, QuantizedRows rows) {
  DSK_SHARED(int32_t, partial, [kSlots][kRows][kBlockOutputs]);
  const int slots = static_cast<int>(blockDim.x) / kBlockOutputs;
  const int lane = static_cast<int>(threadIdx.x) % kBlockOutputs;
  const int slot = static_cast<int>(threadIdx.x) / kBlockOutputs;
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kBlockOutputs + lane;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kRows;
  const bool folds = slot < kRows && row + slot < a.rows;  // this thread adds up row `slot`
  const int group_inputs = s.group_size < s.inputs ? s.group_size : s.inputs;
  const int pieces = (group_inputs + kPiece - 1) / kPiece;  // of a group
  int32_t sum = 0;
  float total[1] = {};
  for (int first = 0; first < s.groups * pieces; first += slots) {
    const int group = (first + slot) / pieces;
    const int begin = group * s.group_size + (first + slot) % pieces * kPiece;
    int32_t sums[kRows] = {};
    if (group < s.groups) {
      const int group_end = static_cast<int>(min64(static_cast<int64_t>(group + 1) * s.group_size, s.inputs));
      add_piece<Weights, kRows>(a, s, rows, row, begin, min(begin + kPiece, group_end), output, sums);
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) partial[slot][r][lane] = sums[r];
    __syncthreads();
    for (int piece = first; folds && piece < min(first + slots, s.groups * pieces); ++piece) {
      sum += partial[piece - first][slot][lane];
      if ((piece + 1) % pieces != 0) continue;
      const int whole = piece / pieces;
      const GroupScale scale = scale_of_group<Weights>(a, s, whole, output);
      total[0] = add_group(scale, rows.sums[(row + slot) * s.groups + whole], sum, total[0]);
      sum = 0;
    }
    __syncthreads();
  }
  if (folds) write_totals(a, row + slot, output, total, rows.factors[row + slot]);
}

template <class Weights, int kRows>
int32_t run_few(const ds_linear_args& a, const Layout& s, const QuantizedRows& rows, const ds_exec* exec) {
  int slots = 4;
  while (slots < kSlots && slots * min64(s.group_size, kPiece) < s.inputs) slots *= 2;
  const dim3 grid(static_cast<unsigned>(s.padded_outputs / kBlockOutputs),
                  static_cast<unsigned>(ceil_div(a.rows, kRows)));
  return launch(exec, Shape(grid, slots * kBlockOutputs), few_rows<Weights, kRows>, a, s, rows);
}

// --- many rows: a tile of kTileRows x kTileOutputs a block
// -------------------------------------------------------------

constexpr int kTileInputs = 32;
constexpr int kQuads = kTileInputs / 4;
constexpr int kEights = kTileInputs / kVector;

// What a thread moves of a tile: from memory to registers, while the tile before is still in use, and on from there.
template <class Weights, int kTileRows>
class Mover {
 public:
  static constexpr int kWeightUnits = kTileOutputs * kEights / kTileThreads;
  static constexpr int kRowUnits = kTileRows * kEights / kTileThreads;

  DSK_DEVICE Mover(const ds_linear_args& a, const Layout& s, const QuantizedRows& rows, int64_t row, int64_t output)
      : a_(a), s_(s), rows_(rows), row_(row), output_(output) {}

  // Inputs [begin, end).
  DSK_DEVICE void fetch(int begin, int end) {
#pragma unroll
    for (int i = 0; i < kWeightUnits; ++i) {
      const int input = begin + unit_line(i, kTileOutputs) * kVector;
      const int64_t output = output_ + unit_place(i, kTileOutputs);
      words_[i] = {};
      if (input >= end || output >= s_.padded_outputs) continue;
      words_[i] = Weights::fetch(a_.codes + output / kBlockOutputs * s_.block_bytes, input,
                                 static_cast<int>(output % kBlockOutputs), s_.whole_words);
    }
#pragma unroll
    for (int i = 0; i < kRowUnits; ++i) {
      const int input = begin + unit_line(i, kTileRows) * kVector;
      const int64_t row = row_ + unit_place(i, kTileRows);
      x_[i] = {};
      if (input >= end || row >= a_.rows) continue;
      x_[i] = *reinterpret_cast<const Pack<int32_t, 2>*>(rows_.q + row * rows_.pitch + input);
    }
  }

  DSK_DEVICE void store(Four<int32_t> (&w)[kQuads][kTileOutputs / 4], Four<int32_t> (&x)[kQuads][kTileRows / 4]) const {
#pragma unroll
    for (int i = 0; i < kWeightUnits; ++i) {
      const int output = unit_place(i, kTileOutputs);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        w[2 * unit_line(i, kTileOutputs) + j][output / 4].values[output % 4] = Weights::quad(words_[i], j);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowUnits; ++i) {
      const int row = unit_place(i, kTileRows);
#pragma unroll
      for (int j = 0; j < 2; ++j) x[2 * unit_line(i, kTileRows) + j][row / 4].values[row % 4] = x_[i].values[j];
    }
  }

 private:
  const ds_linear_args& a_;
  const Layout& s_;
  const QuantizedRows& rows_;
  const int64_t row_;
  const int64_t output_;
  typename Weights::Words words_[kWeightUnits];
  Pack<int32_t, 2> x_[kRowUnits];
};

// sums += x * w over the first `quads` quads of a tile.
template <int kTileRows>
DSK_DEVICE void add_tile(const Four<int32_t> (&w)[kQuads][kTileOutputs / 4],
                         const Four<int32_t> (&x)[kQuads][kTileRows / 4], int quads,
                         int32_t (&sums)[kThreadRows<kTileRows>][kThreadOutputs]) {
#pragma unroll 4
  for (int k = 0; k < quads; ++k) {
    int32_t weights[kThreadOutputs];
    int32_t values[kThreadRows<kTileRows>];
    read_line(w[k], first_output(), weights);
    read_line(x[k], first_row<kTileRows>(), values);
#pragma unroll
    for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
#pragma unroll
      for (int o = 0; o < kThreadOutputs; ++o) sums[r][o] = dot4(values[r], weights[o], sums[r][o]);
    }
  }
}

// Where the tile that begins with `begin` ends: no tile has inputs of two groups.
DSK_DEVICE int tile_end(const Layout& s, int begin) {
  const int64_t group_end = (static_cast<int64_t>(begin / s.group_size) + 1) * s.group_size;
  const int64_t end = min64(begin + kTileInputs, min64(group_end, s.inputs));
  return static_cast<int>(ceil_div(end, kVector) * kVector);
}

// Adds the sums of a group to the totals, and begins anew. Rows and outputs that are not there repeat the last.
template <class Weights, int kTileRows>
DSK_DEVICE void fold_group(const ds_linear_args& a, const Layout& s, const QuantizedRows& rows, int group, int64_t row,
                           int64_t output, int32_t (&sums)[kThreadRows<kTileRows>][kThreadOutputs],
                           float (&totals)[kThreadRows<kTileRows>][kThreadOutputs]) {
  GroupScale scales[kThreadOutputs];
#pragma unroll
  for (int o = 0; o < kThreadOutputs; ++o) {
    const int64_t column = min64(output + first_output() + o, s.padded_outputs - 1);
    scales[o] = scale_of_group<Weights>(a, s, group, column);
  }
#pragma unroll
  for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
    const int64_t mine = min64(row + first_row<kTileRows>() + r, a.rows - 1);
    const int32_t x_sum = rows.sums[mine * s.groups + group];
#pragma unroll
    for (int o = 0; o < kThreadOutputs; ++o) {
      totals[r][o] = add_group(scales[o], x_sum, sums[r][o], totals[r][o]);
      sums[r][o] = 0;
    }
  }
}

template <class Weights, int kTileRows>
__global__ void __launch_bounds__(kTileThreads) many_rows(ds_linear_args a, Layout s, QuantizedRows rows) {
  DSK_SHARED(Four<int32_t>, w, [kQuads][kTileOutputs / 4]);
  DSK_SHARED(Four<int32_t>, x, [kQuads][kTileRows / 4]);
  const int64_t output = static_cast<int64_t>(blockIdx.x) * kTileOutputs;
  const int64_t row = static_cast<int64_t>(blockIdx.y) * kTileRows;
  float totals[kThreadRows<kTileRows>][kThreadOutputs] = {};
  int32_t sums[kThreadRows<kTileRows>][kThreadOutputs] = {};
  Mover<Weights, kTileRows> mover(a, s, rows, row, output);
  mover.fetch(0, tile_end(s, 0));
  for (int begin = 0; begin < s.inputs;) {
    const int end = tile_end(s, begin);
    mover.store(w, x);
    __syncthreads();
    if (end < s.inputs) mover.fetch(end, tile_end(s, end));
    add_tile<kTileRows>(w, x, (end - begin) / 4, sums);
    __syncthreads();
    if (end % s.group_size == 0 || end >= s.inputs) {
      fold_group<Weights, kTileRows>(a, s, rows, begin / s.group_size, row, output, sums, totals);
    }
    begin = end;
  }
#pragma unroll
  for (int r = 0; r < kThreadRows<kTileRows>; ++r) {
    const int64_t mine = row + first_row<kTileRows>() + r;
    if (mine < a.rows) write_totals(a, mine, output + first_output(), totals[r], rows.factors[mine]);
  }
}

template <class Weights, int kTileRows>
int32_t run_many(const ds_linear_args& a, const Layout& s, const QuantizedRows& rows, const ds_exec* exec) {
  return launch(exec, tile_shape<kTileRows>(a), many_rows<Weights, kTileRows>, a, s, rows);
}

int32_t run(const ds_linear_args& a, const ds_exec* exec) {
  const Layout s = layout_of(a);
  const QuantizedRows rows = rows_in(exec->workspace, a, s);
  const int32_t status = quantize_all(a, s, rows, exec);
  if (status != DS_OK) return status;
  return with_integers(a, [&](auto tag) -> int32_t {
    using Weights = decltype(tag);
    if (a.rows == 1) return run_few<Weights, 1>(a, s, rows, exec);
    if (a.rows == 2) return run_few<Weights, 2>(a, s, rows, exec);
    if (a.rows <= kFewRows) return run_few<Weights, 4>(a, s, rows, exec);
    return a.rows <= 32 ? run_many<Weights, 32>(a, s, rows, exec) : run_many<Weights, 64>(a, s, rows, exec);
  });
}

}  // namespace

uint64_t linear_w8a8_workspace(const void* arguments) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  if (a->rows < 1 || a->inputs < 1 || a->group_size < 1) return 0;
  const int64_t row_bytes = pitch_of(*a) + 4 * (layout_of(*a).groups + 1);
  return static_cast<uint64_t>(min64(a->rows, kRowChunk) * row_bytes);
}

int32_t linear_w8a8(const void* arguments, const ds_exec* exec) {
  const ds_linear_args* a = static_cast<const ds_linear_args*>(arguments);
  int32_t status = check(a, exec);
  if (status != DS_OK) return status;
  if (a->format != 0 || (a->bits != 8 && a->bits != 4)) return DS_BAD_ARGUMENT;
  if (exec->workspace_bytes < linear_w8a8_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  if (a->outputs == 0) return DS_OK;
  const int64_t bytes = a->dtype == DS_F32 ? 4 : 2;
  for (int64_t first = 0; first < a->rows && status == DS_OK; first += kRowChunk) {
    ds_linear_args part = *a;
    part.rows = min64(kRowChunk, a->rows - first);
    part.x = static_cast<const char*>(a->x) + first * a->inputs * bytes;
    part.y = static_cast<char*>(a->y) + first * a->outputs * bytes;
    status = run(part, exec);
  }
  return status;
}

}  // namespace dsk
