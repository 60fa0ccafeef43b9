// Rows of elements, each served by a group of threads: a warp or a block.
//
// Note [Rows in registers]
// Threads read packs of 16 bytes. Pack k of a thread is number k * threads + lane of its row, so neighbours read
// neighbouring memory. The first packs of a thread, as many as the RowShape says, stay in registers between the passes
// over a row, unconverted: four registers each whatever the dtype. What a row has beyond them is read again. Where a
// row begins off 16 bytes (odd lengths, views) the same thread reads the same elements one by one: more instructions,
// the same sectors, and the same order of sums, so results do not depend on alignment.
#pragma once

#include "gpu/gpu.h"

namespace dsk {

// 16 bytes of a row, held as words: 16-bit values of their own would take a register each.
template <typename T>
struct alignas(16) RowPack {
  static constexpr int kSize = 16 / sizeof(T);
  static constexpr int kPerWord = 4 / sizeof(T);
  uint32_t words[4];

  DSK_DEVICE T get(int i) const {
    T value;
    if constexpr (kPerWord == 1) {
      memcpy(&value, &words[i], 4);
    } else {
      const uint16_t bits = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
      memcpy(&value, &bits, 2);
    }
    return value;
  }
  // For elements in order into a new pack: the first of a word clears the second.
  DSK_DEVICE void set(int i, T value) {
    if constexpr (kPerWord == 1) {
      memcpy(&words[i], &value, 4);
    } else {
      uint16_t bits;
      memcpy(&bits, &value, 2);
      words[i / 2] = i % 2 == 0 ? bits : words[i / 2] | static_cast<uint32_t>(bits) << 16;
    }
  }
  DSK_DEVICE float value(int i) const { return to_float(get(i)); }
  DSK_DEVICE void set_value(int i, float value) { set(i, from_float<T>(value)); }
};

// The address, which is known to be a multiple of `bytes`, so that memcpy becomes one instruction.
template <int bytes>
DSK_DEVICE const void* aligned(const void* address) {
  return __builtin_assume_aligned(address, bytes);
}
template <int bytes>
DSK_DEVICE void* aligned(void* address) {
  return __builtin_assume_aligned(address, bytes);
}

// Elements from `column` to the end of the row, at most a pack of them.
template <typename T>
DSK_DEVICE int valid_elements(int64_t column, int64_t columns) {
  const int64_t left = columns - column;
  return left < RowPack<T>::kSize ? static_cast<int>(left < 0 ? 0 : left) : RowPack<T>::kSize;
}

// Packs at `column`, `column` + step, ...: zeros behind the end of the row. `vector`: every pack of the row is whole
// and aligned. All loads are under way before one is waited for, so the branch is outside of the loops.
template <typename T, int n>
DSK_DEVICE void load_packs(const T* row, int64_t column, int64_t step, int64_t columns, bool vector,
                           RowPack<T> (&packs)[n]) {
  if (vector) {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      memset(&packs[k], 0, 16);
      if (column + k * step < columns) memcpy(&packs[k], aligned<16>(row + column + k * step), 16);
    }
  } else {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const T* from = row + column + k * step;
      const int valid = valid_elements<T>(column + k * step, columns);
#pragma unroll
      for (int i = 0; i < RowPack<T>::kSize; ++i) packs[k].set(i, i < valid ? from[i] : from_float<T>(0.0f));
    }
  }
}

template <typename T>
DSK_DEVICE void store_pack(const RowPack<T>& pack, T* row, int64_t column, int64_t columns, bool vector) {
  if (vector) {
    if (column < columns) memcpy(aligned<16>(row + column), &pack, 16);
  } else {
    const int valid = valid_elements<T>(column, columns);
#pragma unroll
    for (int i = 0; i < RowPack<T>::kSize; ++i) {
      if (i < valid) row[column + i] = pack.get(i);
    }
  }
}

// `n` elements of a tensor of parameters as float32, those behind `valid` 0. `vector` as for load_packs.
template <typename T, int n>
DSK_DEVICE void load_floats(const T* from, int valid, bool vector, float (&out)[n]) {
  constexpr int kBytes = n * sizeof(T) < 16 ? n * sizeof(T) : 16;
  constexpr int kEach = kBytes / sizeof(T);
  if (vector) {
    struct alignas(kBytes) Part {
      T values[kEach];
    };
#pragma unroll
    for (int i = 0; i < n; i += kEach) {
      Part part;
      memcpy(&part, aligned<kBytes>(from + i), kBytes);
#pragma unroll
      for (int j = 0; j < kEach; ++j) out[i + j] = to_float(part.values[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < n; ++i) out[i] = i < valid ? to_float(from[i]) : 0.0f;
  }
}

// The same where only the run knows the dtype; the branch is the same for all threads.
template <int n>
DSK_DEVICE void load_floats(int32_t dtype, const void* base, int64_t first, int valid, bool vector, float (&out)[n]) {
  if (dtype == DS_F32) {
    load_floats(static_cast<const float*>(base) + first, valid, vector, out);
  } else if (dtype == DS_BF16) {
    load_floats(static_cast<const bfloat16*>(base) + first, valid, vector, out);
  } else {
    load_floats(static_cast<const float16*>(base) + first, valid, vector, out);
  }
}

// Whether dense rows of `columns` elements of T are read and written in whole packs. NULL is aligned.
template <typename T, typename... Pointers>
bool whole_packs(int64_t columns, Pointers... pointers) {
  return columns % RowPack<T>::kSize == 0 && all_aligned(16, pointers...);
}

// a / b for a >= 0 and b > 0; a division of 64 bits takes four times as long, and is rarely needed.
DSK_DEVICE int64_t quotient(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

// The larger of two where neither is NaN; of one NaN and another value the other.
struct LargestNumber {
  DSK_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Rows cut into packs for kernels without sums: threads take packs in turn, and the last of a row may be short.
struct PackGrid {
  int64_t columns;
  int64_t per_row;
  int64_t count;
};

template <typename T>
PackGrid pack_grid(int64_t rows, int64_t columns) {
  const int64_t per_row = ceil_div(columns, RowPack<T>::kSize);
  return {columns, per_row, rows * per_row};
}

// Threads of the smallest group: a warp, or half of one where a warp has 64 lanes.
constexpr int kRowWarp = 32;

// The threads that serve a row: kRowWarp of them, or a whole block.
template <int threads>
struct RowGroup {
  static constexpr int kBlock = threads == kRowWarp ? 4 * kRowWarp : threads;
  static constexpr int kPerBlock = kBlock / threads;

  static DSK_DEVICE int lane() { return static_cast<int>(threadIdx.x) % threads; }
  // Number of this group in the grid, and how many there are.
  static DSK_DEVICE int64_t number() {
    return int64_t{blockIdx.x} * kPerBlock + static_cast<int>(threadIdx.x) / threads;
  }
  static DSK_DEVICE int64_t count() { return int64_t{gridDim.x} * kPerBlock; }

  // Folds each of n values over the threads of the group, for all of them and in a fixed order. The whole block calls.
  template <typename Op, int n>
  static DSK_DEVICE void fold(float (&values)[n], Op op) {
#pragma unroll
    for (int j = 0; j < n; ++j) values[j] = warp_reduce(values[j], op, kRowWarp);
    if constexpr (threads > kRowWarp) {
      constexpr int kWarps = threads / kRowWarp;
      DSK_SHARED(float, folded, [n * kWarps]);
      __syncthreads();  // what was here before has been read
      if (lane() % kRowWarp == 0) {
#pragma unroll
        for (int j = 0; j < n; ++j) folded[j * kWarps + lane() / kRowWarp] = values[j];
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < n; ++j) values[j] = warp_reduce(folded[j * kWarps + lane() % kWarps], op, kWarps);
    }
  }

  template <typename Op>
  static DSK_DEVICE float fold(float value, Op op) {
    float values[1] = {value};
    fold(values, op);
    return values[0];
  }
};

// for each row of this group. Groups of a block stay together, since operations of a warp and barriers need them all:
// a row of [rows, ...) may come, which row_columns() says has no columns.
#define DSK_ROWS(Group, row, rows) \
  for (int64_t row = Group::number(); row - row % Group::kPerBlock < (rows); row += Group::count())

DSK_DEVICE int64_t row_columns(int64_t row, int64_t rows, int64_t columns) { return row < rows ? columns : 0; }

// A kernel over rows: the threads of a group, and the packs that each keeps in registers.
template <int threads, int packs, bool longer = false>
struct RowShape {
  using Group = RowGroup<threads>;
  static constexpr int kThreads = threads;
  static constexpr int kPacks = packs;
  static constexpr bool kLonger = longer;  // rows may be longer than the packs hold
  static constexpr int kBlock = Group::kBlock;
  // Blocks that a multiprocessor should hold: 80 registers a thread, enough for no kernel here to spill. HIP counts
  // waves there, and has the registers.
#if defined(__HIP_PLATFORM_AMD__)
  static constexpr int kResident = 1;
#else
  static constexpr int kResident = kBlock < 768 ? 768 / kBlock : 1;
#endif

  // Blocks for `groups` groups, but not more than a device runs in a while.
  static unsigned blocks(int64_t groups) {
    return static_cast<unsigned>(min64(ceil_div(groups, Group::kPerBlock), int64_t{1} << 20));
  }
};

// Calls body(shape) with the first of the shapes whose registers hold a row, or else the last.
template <typename T, typename First, typename... Others, typename Body>
int32_t with_row_shape(int64_t columns, const Body& body) {
  if constexpr (sizeof...(Others) > 0) {
    if (columns > int64_t{First::kThreads} * First::kPacks * RowPack<T>::kSize) {
      return with_row_shape<T, Others...>(columns, body);
    }
  }
  return body(First{});
}

}  // namespace dsk
