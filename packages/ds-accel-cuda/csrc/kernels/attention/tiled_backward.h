// The kernels that walk over tiles in the backward pass of tiled attention; see Note [Passes of the backward].
#pragma once

#include "attention/tiled.h"

namespace dsk {

template <int Depth>
using BackwardSize = TileSize<Depth, (Depth <= 64 ? 2 : 1),
                              (Depth <= 64    ? 4
                               : Depth <= 128 ? 2
                                              : 1)>;

template <typename T>
struct Backward {
  Scores scores;
  Views<T> in;
  HeadsView<const T> dy;
  HeadsView<const T> y;
  HeadsView<T> dq;
  HeadsView<T> dk;
  HeadsView<T> dv;
  const float* lse;    // [outer, heads, tokens]
  const float* along;  // [outer, heads, tokens] of dy . y
  float* key_parts;    // [outer, heads, tokens], or NULL
  Heads heads;
};

template <typename T>
Backward<T> backward_of(const ds_tiled_attention_backward_args* a) {
  const bool packed = is_packed_attention<T>(a, a->dy, a->y, static_cast<const void*>(a->dq),
                                             static_cast<const void*>(a->dk), static_cast<const void*>(a->dv));
  return {scores_of(a),
          views_of<T>(a),
          like_y<T>(a, a->dy),
          like_y<T>(a, a->y),
          like_y<T>(a, a->dq),
          like_y<T>(a, a->dk),
          like_y<T>(a, a->dv),
          a->lse,
          nullptr,
          nullptr,
          {static_cast<int>(a->dim), packed}};
}

// Two tiles of the block's own rows, two of the others', and one of weights.
template <typename Size>
constexpr size_t backward_bytes() {
  return sizeof(float) * (2 * Size::kOwnFloats + 2 * Size::kOtherFloats + Size::kWeightFloats);
}

// One (outer, head) of a backward pass.
template <typename T>
struct Slice {
  int64_t outer;
  int64_t head;
  int tokens;
  const float* lse;
  const float* along;
  SliceScores scores;

  DSK_DEVICE Slice(const Backward<T>& call, int64_t number)
      : outer(number / call.scores.heads),
        head(number % call.scores.heads),
        tokens(call.scores.tokens),
        lse(call.lse + number * call.scores.tokens),
        along(call.along + number * call.scores.tokens),
        scores(call.scores, outer, head) {}

  // Where a row of a tile that begins with token `first` lies.
  DSK_DEVICE auto rows(const HeadsView<const T>& view, int first) const {
    const T* const base = view.slice(outer, head);
    const int64_t stride = view.token_stride;
    const int end = tokens;
    return [=](int row) { return first + row < end ? base + (first + row) * stride : static_cast<const T*>(nullptr); };
  }

  // From products q . k and dy . v: the probability, and the gradient of the score.
  DSK_DEVICE void differentiate(float& product, float& gradient, int query, int key) const {
    const float score = scores.of(product, query, key);
    const bool seen = score != -INFINITY && lse[query] != -INFINITY;  // -INFINITY also where there is no such query
    product = seen ? quick_exp(score - lse[query]) : 0.0f;
    gradient = seen ? product * (gradient - along[query]) : 0.0f;
  }
};

// OfKeys: own rows are keys and values, and dk and dv come out; else own rows are queries and dy, and dq comes out.
template <typename T, typename Size, bool OfKeys>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks) walk_kernel(const Backward<T> call, const int64_t tiles) {
  float* const own_first = dynamic_shared<float>();              // k, or q
  float* const own_second = own_first + Size::kOwnFloats;        // v, or dy
  float* const other_first = own_second + Size::kOwnFloats;      // q, or k
  float* const other_second = other_first + Size::kOtherFloats;  // dy, or v
  float* const weights = other_second + Size::kOtherFloats;
  const int64_t number = blockIdx.x / tiles;
  const int own = static_cast<int>(blockIdx.x % tiles) * Size::kOwnRows;
  const Slice<T> slice(call, number);
  const int dim = call.heads.dim;
  const auto load = [&](float* tile, int rows, const HeadsView<const T>& view, int first) {
    load_rows<T>(tile, Size::kStride, rows, call.heads, slice.rows(view, first));
  };

  load(own_first, Size::kOwnRows, OfKeys ? call.in.k : call.in.q, own);
  load(own_second, Size::kOwnRows, OfKeys ? call.in.v : call.dy, own);
  float first_sums[Size::kOwn][4 * Size::kChunks];                // dk, or dq
  float second_sums[OfKeys ? Size::kOwn : 1][4 * Size::kChunks];  // dv
  float key_sums[Size::kOwn] = {};
  clear(first_sums);
  clear(second_sums);
  for (int other = 0; other < slice.tokens; other += Size::kOtherRows) {
    const bool any = OfKeys ? slice.scores.any(other, Size::kOtherRows, own, Size::kOwnRows)
                            : slice.scores.any(own, Size::kOwnRows, other, Size::kOtherRows);
    if (!any) continue;
    __syncthreads();  // the tiles before were read
    load(other_first, Size::kOtherRows, OfKeys ? call.in.q : call.in.k, other);
    load(other_second, Size::kOtherRows, OfKeys ? call.dy : call.in.v, other);
    __syncthreads();
    float weight[Size::kOwn][Size::kOther];
    float gradient[Size::kOwn][Size::kOther];
    multiply<Size>(own_first, other_first, dim, weight);
    multiply<Size>(own_second, other_second, dim, gradient);
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      const int mine = own + group_of_thread() + i * kGroups;
      DSK_UNROLL
      for (int j = 0; j < Size::kOther; ++j) {
        const int theirs = other + lane_of_group() + j * kLanes;
        slice.differentiate(weight[i][j], gradient[i][j], OfKeys ? theirs : mine, OfKeys ? mine : theirs);
        key_sums[i] += gradient[i][j];
      }
    }
    if constexpr (OfKeys) {
      share<Size>(weights, weight);
      __syncwarp();
      accumulate<Size>(weights, other_second, dim, second_sums);
      __syncwarp();
    }
    share<Size>(weights, gradient);
    __syncwarp();
    accumulate<Size>(weights, other_first, dim, first_sums);
    __syncwarp();
  }
  const HeadsView<T>& first_out = OfKeys ? call.dk : call.dq;
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    const int token = own + group_of_thread() + i * kGroups;
    const float key_sum = warp_sum(key_sums[i], kLanes);
    if (token >= slice.tokens) continue;
    const int64_t place = token * first_out.token_stride;
    write_row<T, Size>(first_out.slice(slice.outer, slice.head) + place, call.heads, first_sums[i], call.scores.scale);
    if constexpr (OfKeys) {
      write_row<T, Size>(call.dv.slice(slice.outer, slice.head) + place, call.heads, second_sums[i], 1.0f);
      if (call.key_parts != nullptr && lane_of_group() == 0) call.key_parts[number * slice.tokens + token] = key_sum;
    }
  }
}

// dbias: a tile of queries by keys of one bias, over the slices that share it.
template <typename T, typename Size>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks)
    bias_kernel(const Backward<T> call, const int64_t query_tiles, void* dbias) {
  float* const queries = dynamic_shared<float>();
  float* const dys = queries + Size::kOwnFloats;
  float* const keys = dys + Size::kOwnFloats;
  float* const values = keys + Size::kOtherFloats;
  const Scores& all = call.scores;
  const int64_t key_tiles = ceil_div(all.tokens, Size::kOtherRows);
  const int64_t bias_slice = blockIdx.x / (query_tiles * key_tiles);
  const int64_t tile = blockIdx.x % (query_tiles * key_tiles);
  const int query = static_cast<int>(tile / key_tiles) * Size::kOwnRows;
  const int key = static_cast<int>(tile % key_tiles) * Size::kOtherRows;
  const int64_t heads_each = all.heads / all.bias_heads;
  const int64_t first_outer = bias_slice / all.bias_heads * all.bias_repeat;
  const int64_t first_head = bias_slice % all.bias_heads * heads_each;

  float sums[Size::kOwn][Size::kOther];
  clear(sums);
  for (int64_t step = 0; step < all.bias_repeat * heads_each; ++step) {
    const int64_t outer = first_outer + step / heads_each;
    const Slice<T> slice(call, outer * all.heads + first_head + step % heads_each);
    if (!slice.scores.any(query, Size::kOwnRows, key, Size::kOtherRows)) continue;
    __syncthreads();  // the tiles before were read
    load_rows<T>(queries, Size::kStride, Size::kOwnRows, call.heads, slice.rows(call.in.q, query));
    load_rows<T>(dys, Size::kStride, Size::kOwnRows, call.heads, slice.rows(call.dy, query));
    load_rows<T>(keys, Size::kStride, Size::kOtherRows, call.heads, slice.rows(call.in.k, key));
    load_rows<T>(values, Size::kStride, Size::kOtherRows, call.heads, slice.rows(call.in.v, key));
    __syncthreads();
    float weight[Size::kOwn][Size::kOther];
    float gradient[Size::kOwn][Size::kOther];
    multiply<Size>(queries, keys, call.heads.dim, weight);
    multiply<Size>(dys, values, call.heads.dim, gradient);
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      DSK_UNROLL
      for (int j = 0; j < Size::kOther; ++j) {
        slice.differentiate(weight[i][j], gradient[i][j], query + group_of_thread() + i * kGroups,
                            key + lane_of_group() + j * kLanes);
        sums[i][j] += gradient[i][j];
      }
    }
  }
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    const int64_t row = query + group_of_thread() + i * kGroups;
    DSK_UNROLL
    for (int j = 0; j < Size::kOther; ++j) {
      const int64_t column = key + lane_of_group() + j * kLanes;
      if (row >= all.tokens || column >= all.tokens) continue;
      const int64_t place = (bias_slice * all.tokens + row) * all.tokens + column;
      if (all.bias.dtype == DS_F32) {
        static_cast<float*>(dbias)[place] = sums[i][j];
      } else if (all.bias.dtype == DS_BF16) {
        static_cast<bfloat16*>(dbias)[place] = from_float<bfloat16>(sums[i][j]);
      } else {
        static_cast<float16*>(dbias)[place] = from_float<float16>(sums[i][j]);
      }
    }
  }
}

}  // namespace dsk
