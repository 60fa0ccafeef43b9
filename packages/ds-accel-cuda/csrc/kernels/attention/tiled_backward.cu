// block_sparse_attention_backward, evoformer_attention_backward: probabilities again from the log-sum-exp, tile by
// tile.
//
// Note [Passes of the backward]
// No atomics, so that every run gives the same bits: dy . y of each query first; then a block for each tile of keys
// walks over queries (dk, dv, and its part of the gradient of key_bias); a block for each tile of queries walks over
// keys (dq); a block for each tile of a bias walks over the slices that share it, in order; and the parts of key_bias
// are added over heads, in order. Source: T. Dao, "FlashAttention-2", 2023, algorithm 2; the order is ours.
#include "attention/rows.h"
#include "attention/tiled_backward.h"

namespace dsk {
namespace {

// along[row] = dy . y, by a group of 8 lanes a row.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) along_kernel(const Backward<T> call, float* along) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kGroups + group_of_thread();
  const int64_t tokens = call.scores.tokens;
  const int64_t slice = row / tokens;
  float sum = 0.0f;
  if (slice < call.scores.outer * call.scores.heads) {
    const int64_t outer = slice / call.scores.heads, head = slice % call.scores.heads, token = row % tokens;
    const T* const dy = call.dy.slice(outer, head) + token * call.dy.token_stride;
    const T* const y = call.y.slice(outer, head) + token * call.y.token_stride;
    for (int i = lane_of_group(); i < call.heads.dim; i += kLanes) sum = fmaf(to_float(dy[i]), to_float(y[i]), sum);
  }
  sum = warp_sum(sum, kLanes);
  if (lane_of_group() == 0 && slice < call.scores.outer * call.scores.heads) along[row] = sum;
}

// dkey_bias[outer, key]: parts of the heads, in order.
template <typename B>
__global__ void __launch_bounds__(kThreads)
    key_bias_kernel(const float* parts, int64_t outer, int64_t heads, int64_t tokens, B* dkey_bias) {
  DSK_GRID_STRIDE(i, outer * tokens) {
    const float* const part = parts + i / tokens * heads * tokens + i % tokens;
    float sum = 0.0f;
    for (int64_t head = 0; head < heads; ++head) sum += part[head * tokens];
    dkey_bias[i] = from_float<B>(sum);
  }
}

int64_t rows_of(const ds_tiled_attention_backward_args* a) { return a->outer * a->heads * a->tokens; }

template <typename T, int Depth>
int32_t run_passes(const ds_tiled_attention_backward_args* a, const ds_exec* exec) {
  using Size = BackwardSize<Depth>;
  Backward<T> call = backward_of<T>(a);
  float* const along = static_cast<float*>(exec->workspace);
  call.along = along;
  call.key_parts = a->dkey_bias == nullptr ? nullptr : along + rows_of(a);
  const int64_t slices = a->outer * a->heads;
  const int64_t own_tiles = ceil_div(a->tokens, Size::kOwnRows);
  const int64_t all_tiles = own_tiles * ceil_div(a->tokens, Size::kOtherRows);
  const int64_t bias_slices = a->dbias == nullptr ? 0 : a->outer / a->bias_repeat * a->bias_heads;
  const int64_t blocks[] = {ceil_div(rows_of(a), kGroups), slices * own_tiles, bias_slices * all_tiles};
  for (const int64_t count : blocks) {
    if (count >= (int64_t{1} << 31)) return DS_BAD_ARGUMENT;
  }
  const auto shape = [&](int64_t count) {
    Shape made(static_cast<unsigned>(count), kTileThreads, backward_bytes<Size>());
    if (backward_bytes<Size>() > 48 * 1024) made.large();
    return made;
  };
  int32_t status = launch(exec, Shape(static_cast<unsigned>(blocks[0]), kTileThreads), along_kernel<T>, call, along);
  if (status == DS_OK) status = launch(exec, shape(blocks[1]), walk_kernel<T, Size, true>, call, own_tiles);
  if (status == DS_OK) status = launch(exec, shape(blocks[1]), walk_kernel<T, Size, false>, call, own_tiles);
  if (status == DS_OK && a->dkey_bias != nullptr) {
    status = with_float_type(a->key_bias_dtype, [&](auto tag) -> int32_t {
      using B = typename decltype(tag)::type;
      return launch(exec, Shape(blocks_for(a->outer * a->tokens, kThreads), kThreads), key_bias_kernel<B>,
                    call.key_parts, a->outer, a->heads, a->tokens, static_cast<B*>(a->dkey_bias));
    });
  }
  if (status == DS_OK && bias_slices > 0) {
    status = launch(exec, shape(blocks[2]), bias_kernel<T, Size>, call, own_tiles, a->dbias);
  }
  return status;
}

}  // namespace

uint64_t tiled_attention_backward_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_tiled_attention_backward_args*>(arguments);
  return sizeof(float) * static_cast<uint64_t>(max64(rows_of(a), 0)) * (a->dkey_bias == nullptr ? 1 : 2);
}

int32_t tiled_attention_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_tiled_attention_backward_args*>(arguments);
  if (!is_valid_attention(a, exec)) return DS_BAD_ARGUMENT;
  if (!has_known_biases(a)) return DS_UNSUPPORTED_DTYPE;
  if ((a->dbias != nullptr && a->bias == nullptr) || (a->dkey_bias != nullptr && a->key_bias == nullptr)) {
    return DS_BAD_ARGUMENT;
  }
  if (exec->workspace_bytes < tiled_attention_backward_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return with_depth(a->dim, [&](auto depth) -> int32_t { return run_passes<T, decltype(depth)::value>(a, exec); });
  });
}

}  // namespace dsk
