// block_sparse_attention_forward, evoformer_attention_forward: a block for each tile of queries of each head.
#include "attention/rows.h"
#include "attention/tiled.h"

namespace dsk {
namespace {

template <int Depth>
using ForwardSize = TileSize<Depth,
                             (Depth <= 64    ? 4
                              : Depth <= 128 ? 2
                                             : 1),
                             (Depth <= 128 ? 4 : 2)>;

template <typename T>
struct Forward {
  Scores scores;
  Views<T> in;
  HeadsView<T> y;
  float* lse;
  Heads heads;
  int64_t tiles;  // of a slice
};

template <typename Size>
constexpr size_t forward_bytes() {
  return sizeof(float) * (Size::kOwnFloats + Size::kOtherFloats + Size::kWeightFloats);
}

template <typename T, typename Size>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks) forward_kernel(const Forward<T> call) {
  float* const queries = dynamic_shared<float>();
  float* const other = queries + Size::kOwnFloats;  // keys, then values
  float* const weights = other + Size::kOtherFloats;
  const int64_t slice = blockIdx.x / call.tiles;
  const int first = static_cast<int>(blockIdx.x % call.tiles) * Size::kOwnRows;
  const int64_t outer = slice / call.scores.heads;
  const int64_t head = slice % call.scores.heads;
  const int tokens = call.scores.tokens;
  const SliceScores slice_scores(call.scores, outer, head);
  const auto row_of = [&](const HeadsView<const T>& view, int from) {
    const T* const base = view.slice(outer, head);
    const int64_t stride = view.token_stride;
    return [=](int row) { return from + row < tokens ? base + (from + row) * stride : static_cast<const T*>(nullptr); };
  };

  load_rows<T>(queries, Size::kStride, Size::kOwnRows, call.heads, row_of(call.in.q, first));
  Softmax<Size> softmax;
  softmax.begin();
  for (int key = 0; key < tokens; key += Size::kOtherRows) {
    if (!slice_scores.any(first, Size::kOwnRows, key, Size::kOtherRows)) continue;
    __syncthreads();  // the values before were read
    load_rows<T>(other, Size::kStride, Size::kOtherRows, call.heads, row_of(call.in.k, key));
    __syncthreads();
    float scores[Size::kOwn][Size::kOther];
    multiply<Size>(queries, other, call.heads.dim, scores);
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      DSK_UNROLL
      for (int j = 0; j < Size::kOther; ++j) {
        scores[i][j] =
            slice_scores.of(scores[i][j], first + group_of_thread() + i * kGroups, key + lane_of_group() + j * kLanes);
      }
    }
    softmax.take(scores);
    share<Size>(weights, scores);
    __syncthreads();  // the keys were read
    load_rows<T>(other, Size::kStride, Size::kOtherRows, call.heads, row_of(call.in.v, key));
    __syncthreads();
    accumulate<Size>(weights, other, call.heads.dim, softmax.sums);
  }
  softmax.finish();
  T* const y = call.y.slice(outer, head);
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    const int query = first + group_of_thread() + i * kGroups;
    if (query >= tokens) continue;
    const bool blind = softmax.largest[i] == -INFINITY;
    write_row<T, Size>(y + query * call.y.token_stride, call.heads, softmax.sums[i],
                       blind ? 0.0f : 1.0f / softmax.total[i]);
    if (lane_of_group() == 0) {
      call.lse[slice * tokens + query] = blind ? -INFINITY : softmax.largest[i] + logf(softmax.total[i]);
    }
  }
}

}  // namespace

int32_t tiled_attention_forward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_tiled_attention_forward_args*>(arguments);
  if (!is_valid_attention(a, exec)) return DS_BAD_ARGUMENT;
  if (!has_known_biases(a)) return DS_UNSUPPORTED_DTYPE;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return with_depth(a->dim, [&](auto depth) -> int32_t {
      using Size = ForwardSize<decltype(depth)::value>;
      const Heads heads = {static_cast<int>(a->dim), is_packed_attention<T>(a, a->y)};
      const int64_t tiles = ceil_div(a->tokens, Size::kOwnRows);
      const Forward<T> call = {scores_of(a), views_of<T>(a), like_y<T>(a, a->y), a->lse, heads, tiles};
      const int64_t blocks = a->outer * a->heads * tiles;
      if (blocks >= (int64_t{1} << 31)) return DS_BAD_ARGUMENT;
      return launch(exec, Shape(static_cast<unsigned>(blocks), kTileThreads, forward_bytes<Size>()),
                    forward_kernel<T, Size>, call);
    });
  });
}

}  // namespace dsk
