// Tiles of rows of heads in shared memory, their products, and softmax as it goes.
//
// Note [Tiles of attention]
// A block has 16 groups of 8 lanes. A group owns a few rows of its tile (queries, mostly), row `group + 16 * i`; the
// lanes of a group share out the other tile's rows (keys, mostly), `lane + 8 * j`, when scores are computed, and the
// elements of a head, four next to each other in every 32, when rows are added up. So scores of a row meet in 8
// neighbouring lanes, in a warp of 32 as of 64, and reductions over a row are three shuffles. Tiles are held in
// float32; their stride is four more than their width, so that lanes that read one column of different rows use
// different banks. Source: T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning",
// 2023, section 3.
#pragma once

#include <cmath>

#include "gpu/gpu.h"

#if defined(__CUDACC__) || defined(__HIPCC__)
#define DSK_UNROLL _Pragma("unroll")
#else
#define DSK_UNROLL
#endif

namespace dsk {

constexpr int kTileThreads = 128;
constexpr int kLeastBlocks = 3;  // on a multiprocessor: said, so that the compiler does not spill to fit more
constexpr int kGroups = 16;
constexpr int kLanes = 8;

using Four = Pack<float, 4>;

// Depth: longest head. Own, Other: rows of each tile that a thread has scores of.
template <int Depth, int Own, int Other>
struct TileSize {
  static constexpr int kDepth = Depth;
  static constexpr int kOwn = Own;
  static constexpr int kOther = Other;
  static constexpr int kOwnRows = kGroups * Own;
  static constexpr int kOtherRows = kLanes * Other;
  static constexpr int kStride = Depth + 4;             // of a tile of heads
  static constexpr int kWeightStride = kOtherRows + 4;  // of a tile of scores
  static constexpr int kChunks = Depth / 32;            // fours of a head that a lane adds up
  static constexpr int kOwnFloats = kOwnRows * kStride;
  static constexpr int kOtherFloats = kOtherRows * kStride;
  static constexpr int kWeightFloats = kOwnRows * kWeightStride;
};

DSK_DEVICE int group_of_thread() { return static_cast<int>(threadIdx.x) / kLanes; }
DSK_DEVICE int lane_of_group() { return static_cast<int>(threadIdx.x) % kLanes; }

// 2^(x * log2 e): the device's own, which is several times faster than one that is the same everywhere.
DSK_DEVICE float quick_exp(float x) { return exp2f(x * 1.4426950408889634f); }

// Rows of heads: how long, and whether four elements may be read at once.
struct Heads {
  int dim;
  bool packed;
};

// Whether every row of a tensor with these strides begins where four elements may be read at once.
template <typename T, typename... Strides>
bool is_packed(const void* data, int64_t dim, Strides... strides) {
  return dim % 4 == 0 && all_aligned(4 * sizeof(T), data) && ((strides % 4 == 0) && ...);
}

template <typename T>
DSK_DEVICE Four read_four(const T* row, int column, const Heads& heads) {
  Four out;
  if (heads.packed) {
    const Pack<T, 4> in = *reinterpret_cast<const Pack<T, 4>*>(row + column);
    DSK_UNROLL
    for (int e = 0; e < 4; ++e) out.values[e] = to_float(in.values[e]);
  } else {
    DSK_UNROLL
    for (int e = 0; e < 4; ++e) out.values[e] = column + e < heads.dim ? to_float(row[column + e]) : 0.0f;
  }
  return out;
}

template <typename T>
DSK_DEVICE void write_four(T* row, int column, const Heads& heads, const float* values, float factor) {
  if (heads.packed) {
    Pack<T, 4> out;
    DSK_UNROLL
    for (int e = 0; e < 4; ++e) out.values[e] = from_float<T>(values[e] * factor);
    *reinterpret_cast<Pack<T, 4>*>(row + column) = out;
  } else {
    for (int e = 0; e < 4; ++e) {
      if (column + e < heads.dim) row[column + e] = from_float<T>(values[e] * factor);
    }
  }
}

// A row of a tile, by the 8 lanes of a group; zeros for a row that is NULL and behind its end up to a multiple of four.
template <typename T>
DSK_DEVICE void load_row(float* to, const T* row, const Heads& heads) {
  for (int column = 4 * lane_of_group(); column < heads.dim; column += 4 * kLanes) {
    *reinterpret_cast<Four*>(to + column) =
        row != nullptr ? read_four(row, column, heads) : Four{{0.0f, 0.0f, 0.0f, 0.0f}};
  }
}

// `rows` rows of a tile; place(row) is where one lies, NULL for none.
template <typename T, typename Place>
DSK_DEVICE void load_rows(float* tile, int stride, int rows, const Heads& heads, const Place& place) {
  for (int row = group_of_thread(); row < rows; row += kGroups) {
    load_row<T>(tile + row * stride, place(row), heads);
  }
}

// scores[i][j] = own row i . other row j.
template <typename Size>
DSK_DEVICE void multiply(const float* own, const float* other, int dim, float (&scores)[Size::kOwn][Size::kOther]) {
  const float* const mine = own + group_of_thread() * Size::kStride;
  const float* const theirs = other + lane_of_group() * Size::kStride;
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    DSK_UNROLL
    for (int j = 0; j < Size::kOther; ++j) scores[i][j] = 0.0f;
  }
  for (int column = 0; column < dim; column += 4) {
    Four a[Size::kOwn];
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      a[i] = *reinterpret_cast<const Four*>(mine + i * kGroups * Size::kStride + column);
    }
    DSK_UNROLL
    for (int j = 0; j < Size::kOther; ++j) {
      const Four b = *reinterpret_cast<const Four*>(theirs + j * kLanes * Size::kStride + column);
      DSK_UNROLL
      for (int i = 0; i < Size::kOwn; ++i) {
        DSK_UNROLL
        for (int e = 0; e < 4; ++e) scores[i][j] = fmaf(a[i].values[e], b.values[e], scores[i][j]);
      }
    }
  }
}

// Puts this thread's part of a tile of scores where its group reads it. The caller synchronizes the warp.
template <typename Size>
DSK_DEVICE void share(float* weights, const float (&scores)[Size::kOwn][Size::kOther]) {
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    float* const row = weights + (group_of_thread() + i * kGroups) * Size::kWeightStride + lane_of_group();
    DSK_UNROLL
    for (int j = 0; j < Size::kOther; ++j) row[j * kLanes] = scores[i][j];
  }
}

// sums[i] += weights of own row i times the other tile's rows; each lane its columns.
template <typename Size>
DSK_DEVICE void accumulate(const float* weights, const float* other, int dim,
                           float (&sums)[Size::kOwn][4 * Size::kChunks]) {
  const float* const mine = weights + group_of_thread() * Size::kWeightStride;
  for (int row = 0; row < Size::kOtherRows; row += 4) {
    Four weight[Size::kOwn];
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      weight[i] = *reinterpret_cast<const Four*>(mine + i * kGroups * Size::kWeightStride + row);
    }
    DSK_UNROLL
    for (int r = 0; r < 4; ++r) {
      DSK_UNROLL
      for (int c = 0; c < Size::kChunks; ++c) {
        const int column = 4 * lane_of_group() + 4 * kLanes * c;
        if (column < dim) {
          const Four value = *reinterpret_cast<const Four*>(other + (row + r) * Size::kStride + column);
          DSK_UNROLL
          for (int i = 0; i < Size::kOwn; ++i) {
            DSK_UNROLL
            for (int e = 0; e < 4; ++e) {
              sums[i][4 * c + e] = fmaf(weight[i].values[r], value.values[e], sums[i][4 * c + e]);
            }
          }
        }
      }
    }
  }
}

// Writes this thread's columns of own row i, times a factor.
template <typename T, typename Size>
DSK_DEVICE void write_row(T* row, const Heads& heads, const float (&sums)[4 * Size::kChunks], float factor) {
  DSK_UNROLL
  for (int c = 0; c < Size::kChunks; ++c) {
    const int column = 4 * lane_of_group() + 4 * kLanes * c;
    if (column < heads.dim) write_four(row, column, heads, sums + 4 * c, factor);
  }
}

template <typename T, int N, int M>
DSK_DEVICE void clear(T (&values)[N][M]) {
  DSK_UNROLL
  for (int i = 0; i < N; ++i) {
    DSK_UNROLL
    for (int j = 0; j < M; ++j) values[i][j] = T(0);
  }
}

struct LargestNumber {
  DSK_DEVICE float operator()(float a, float b) const { return fmaxf(a, b); }
};

// Softmax of rows whose scores come tile by tile.
//
// Note [Online softmax]
// `largest` is the largest score so far, `total` this lane's part of the sum of exponentials against it, `sums` the
// values weighted so; all are scaled down when a larger score comes. Source: M. Milakov, N. Gimelshein, "Online
// normalizer calculation for softmax", 2018, algorithm 3.
template <typename Size>
struct Softmax {
  float largest[Size::kOwn];
  float total[Size::kOwn];
  float sums[Size::kOwn][4 * Size::kChunks];

  DSK_DEVICE void begin() {
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      largest[i] = -INFINITY;
      total[i] = 0.0f;
    }
    clear(sums);
  }

  // Turns scores (-inf: not seen) into weights.
  DSK_DEVICE void take(float (&scores)[Size::kOwn][Size::kOther]) {
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      float most = scores[i][0];
      DSK_UNROLL
      for (int j = 1; j < Size::kOther; ++j) most = fmaxf(most, scores[i][j]);
      most = fmaxf(largest[i], warp_reduce(most, LargestNumber{}, kLanes));
      const float base = most == -INFINITY ? 0.0f : most;
      const float shrink = quick_exp(largest[i] - base);
      largest[i] = most;
      float sum = 0.0f;
      DSK_UNROLL
      for (int j = 0; j < Size::kOther; ++j) {
        scores[i][j] = quick_exp(scores[i][j] - base);
        sum += scores[i][j];
      }
      total[i] = fmaf(total[i], shrink, sum);
      DSK_UNROLL
      for (int c = 0; c < 4 * Size::kChunks; ++c) sums[i][c] *= shrink;
    }
  }

  // The totals of whole rows, in every lane of their groups.
  DSK_DEVICE void finish() {
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) total[i] = warp_sum(total[i], kLanes);
  }
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Returns body(Number<Depth>{}) with the smallest depth of tiles that holds a head.
template <typename Body>
int32_t with_depth(int64_t dim, const Body& body) {
  if (dim < 1 || dim > 256) return DS_BAD_ARGUMENT;
  if (dim <= 32) return body(Number<32>{});
  if (dim <= 64) return body(Number<64>{});
  if (dim <= 128) return body(Number<128>{});
  return body(Number<256>{});
}

}  // namespace dsk
