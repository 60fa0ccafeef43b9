// paged_attention: a block for each tile of tokens and heads that share keys, and for each part of long sequences.
//
// Note [Parts of long sequences]
// Where tiles are few, the keys of each are cut in parts, and a second kernel adds up what the parts found, in their
// order. How many parts depends on shapes and settings only, never on lengths, so launches need nothing from the
// device, and a sequence gets the same bits whatever the others hold. Source: T. Dao et al., "Flash-Decoding for
// long-context inference", 2023.
#include "attention/paged.h"
#include "attention/rows.h"
#include "gpu/elementary.h"

namespace dsk {
namespace {

// Wide tiles read keys less often; narrow ones leave fewer threads idle where sequences have few tokens. Keys come in
// groups of the same size in both.
template <int Depth, bool Wide>
using PagedSize = TileSize<Depth,
                           (!Wide || Depth > 128 ? 1
                            : Depth > 64         ? 2
                                                 : 4),
                           (Depth <= 128 ? 4 : 2)>;

constexpr int64_t kEnoughBlocks = 512;  // more parts are not worth their sum
constexpr int64_t kLeastKeys = 256;     // of a part, when the kernel chooses

template <typename T>
struct Paged {
  Batch batch;
  const T* q;
  int64_t q_token_stride;
  int64_t q_head_stride;
  Cache<const T> keys;
  Cache<const T> values;
  const float* slopes;
  T* y;
  float* largest;  // [tokens, heads, splits]; NULL with one part
  float* total;    // the same
  float* sums;     // [tokens, heads, splits, dim]
  int64_t kv_heads;
  int64_t splits;
  float scale;
  float softcap;
  Heads heads;
};

// One block looks at the numbers of every sequence; the others only take care not to leave memory.
DSK_DEVICE void check_batch(const Batch& batch) {
  bool sound = batch.sequences > 0 || batch.starts[0] == 0;
  for (int64_t s = threadIdx.x; s < batch.sequences; s += kTileThreads) sound = sound && batch.is_sound(s);
  if (!sound) report_bad_index();
}

// scores -> scaled, capped, slanted, and -inf where the key is not seen.
template <typename T>
DSK_DEVICE float paged_score(const Paged<T>& call, float product, int64_t key, int64_t position, float slope) {
  const int64_t distance = key - position;
  if (distance > 0 || (call.batch.window > 0 && distance <= -call.batch.window)) return -INFINITY;
  float score = product * call.scale;
  if (call.softcap > 0.0f) score = call.softcap * tanh_of(score / call.softcap);
  return score + slope * static_cast<float>(distance);
}

template <typename T, typename Size>
__global__ void __launch_bounds__(kTileThreads, kLeastBlocks) paged_kernel(const Paged<T> call) {
  DSK_SHARED(int64_t, places, [2][Size::kOtherRows]);  // block and slot of each key of a tile; block -1: none
  float* const queries = dynamic_shared<float>();
  float* const other = queries + Size::kOwnFloats;  // keys, then values
  float* const weights = other + Size::kOtherFloats;
  const Batch& batch = call.batch;
  const int64_t split = blockIdx.x % call.splits;
  const int64_t kv_head = blockIdx.x / call.splits % call.kv_heads;
  if (blockIdx.x == 0) check_batch(batch);
  const RaggedTile<Size::kOwnRows> tile(batch, blockIdx.x / call.splits / call.kv_heads);
  if (tile.is_empty(batch)) return;

  load_rows<T>(queries, Size::kStride, Size::kOwnRows, call.heads, [&](int row) -> const T* {
    if (!tile.has_row(batch, row)) return nullptr;
    const int64_t head = kv_head * batch.group + tile.head(batch, row);
    return call.q + tile.token(batch, row) * call.q_token_stride + head * call.q_head_stride;
  });
  int64_t positions[Size::kOwn];
  float slopes[Size::kOwn];
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    const int row = group_of_thread() + i * kGroups;
    const bool slants = call.slopes != nullptr && tile.has_row(batch, row);
    positions[i] = tile.position(batch, row);
    slopes[i] = slants ? call.slopes[kv_head * batch.group + tile.head(batch, row)] : 0.0f;
  }
  const int last_row = static_cast<int>(min64(tile.count * batch.group - tile.first, Size::kOwnRows)) - 1;
  const int64_t highest = min64(tile.position(batch, last_row), tile.length - 1);
  const KeyRange range = keys_of(batch.window, tile.position(batch, 0), highest, split, call.splits, Size::kOtherRows);

  Softmax<Size> softmax;
  softmax.begin();
  for (int64_t first = range.first; first < range.last; first += Size::kOtherRows) {
    if (threadIdx.x < Size::kOtherRows) {
      const int64_t key = first + threadIdx.x;
      int64_t block = -1;
      if (key >= range.seen && key < range.last) {
        block = batch.table[tile.sequence * batch.table_width + key / batch.block_size];
        if (block < 0 || block >= batch.blocks) {
          report_bad_index();
          block = -1;
        }
      }
      places[0][threadIdx.x] = block;
      places[1][threadIdx.x] = key % batch.block_size;
    }
    __syncthreads();  // the values before were read; their places were, before the values were added up
    const auto row_in = [&](const Cache<const T>& cache) {
      return [&](int key) -> const T* {
        return places[0][key] < 0 ? nullptr : cache.row(places[0][key], places[1][key], kv_head);
      };
    };
    load_rows<T>(other, Size::kStride, Size::kOtherRows, call.heads, row_in(call.keys));
    __syncthreads();
    float scores[Size::kOwn][Size::kOther];
    multiply<Size>(queries, other, call.heads.dim, scores);
    DSK_UNROLL
    for (int i = 0; i < Size::kOwn; ++i) {
      DSK_UNROLL
      for (int j = 0; j < Size::kOther; ++j) {
        const int64_t key = first + lane_of_group() + j * kLanes;
        scores[i][j] = key < range.last ? paged_score(call, scores[i][j], key, positions[i], slopes[i]) : -INFINITY;
      }
    }
    softmax.take(scores);
    share<Size>(weights, scores);
    __syncthreads();  // the keys were read
    load_rows<T>(other, Size::kStride, Size::kOtherRows, call.heads, row_in(call.values));
    __syncthreads();
    accumulate<Size>(weights, other, call.heads.dim, softmax.sums);
  }
  softmax.finish();
  DSK_UNROLL
  for (int i = 0; i < Size::kOwn; ++i) {
    const int row = group_of_thread() + i * kGroups;
    if (!tile.has_row(batch, row)) continue;
    const int64_t head = kv_head * batch.group + tile.head(batch, row);
    const int64_t out = tile.token(batch, row) * call.kv_heads * batch.group + head;
    if (call.splits == 1) {
      const float factor = softmax.total[i] == 0.0f ? 0.0f : 1.0f / softmax.total[i];
      write_row<T, Size>(call.y + out * call.heads.dim, call.heads, softmax.sums[i], factor);
      continue;
    }
    const int64_t part = out * call.splits + split;
    const Heads floats = {call.heads.dim, call.heads.dim % 4 == 0};
    write_row<float, Size>(call.sums + part * call.heads.dim, floats, softmax.sums[i], 1.0f);
    if (lane_of_group() == 0) {
      call.largest[part] = softmax.largest[i];
      call.total[part] = softmax.total[i];
    }
  }
}

// Adds up the parts of a row, in order; a group of 8 lanes a row.
template <typename T>
__global__ void __launch_bounds__(kTileThreads) combine_kernel(const Paged<T> call, int64_t rows) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kGroups + group_of_thread();
  if (row >= rows) return;
  const float* const largest = call.largest + row * call.splits;
  const float* const total = call.total + row * call.splits;
  float most = -INFINITY;
  for (int64_t part = 0; part < call.splits; ++part) most = fmaxf(most, largest[part]);
  const float base = most == -INFINITY ? 0.0f : most;
  float sum = 0.0f;
  for (int64_t part = 0; part < call.splits; ++part) sum = fmaf(total[part], quick_exp(largest[part] - base), sum);
  const float factor = sum == 0.0f ? 0.0f : 1.0f / sum;
  const int dim = call.heads.dim;
  for (int column = lane_of_group(); column < dim; column += kLanes) {
    float value = 0.0f;
    for (int64_t part = 0; part < call.splits; ++part) {
      const float weight = quick_exp(largest[part] - base);
      value = fmaf(call.sums[(row * call.splits + part) * dim + column], weight, value);
    }
    call.y[row * dim + column] = from_float<T>(value * factor);
  }
}

// Whether sequences have tokens enough, on average, to fill wide tiles.
bool is_wide(const ds_paged_attention_args* a) {
  return a->tokens * (a->heads / a->kv_heads) >= 2 * kGroups * max64(a->sequences, 1);
}

// Parts that keys are cut in. By the shapes alone, see Note [Parts of long sequences].
int64_t splits_of(const ds_paged_attention_args* a) {
  if (a->splits > 0) return a->splits;
  const int64_t group = a->heads / a->kv_heads;
  const int64_t blocks = RaggedTile<kGroups>::tiles(a->tokens, group, a->sequences) * a->kv_heads;
  const int64_t most = ceil_div(a->table_width * a->block_size, kLeastKeys);
  return max64(1, min64(most, kEnoughBlocks / max64(blocks, 1)));
}

template <typename T, typename Size>
int32_t attend(const ds_exec* exec, const Paged<T>& call) {
  const Batch& batch = call.batch;
  const int64_t tiles = RaggedTile<Size::kOwnRows>::tiles(batch.tokens, batch.group, batch.sequences);
  const int64_t blocks = tiles * call.kv_heads * call.splits;
  if (blocks >= (int64_t{1} << 31)) return DS_BAD_ARGUMENT;
  const size_t bytes = sizeof(float) * (Size::kOwnFloats + Size::kOtherFloats + Size::kWeightFloats);
  return launch(exec, Shape(static_cast<unsigned>(blocks), kTileThreads, bytes), paged_kernel<T, Size>, call);
}

bool has_shape(const ds_paged_attention_args* a) {
  const bool sizes = a->tokens >= 0 && a->heads >= 0 && a->kv_heads > 0 && a->sequences >= 0 && a->blocks >= 0;
  return sizes && a->block_size > 0 && a->table_width >= 0 && a->window >= 0 && a->splits >= 0 && a->dim > 0 &&
         a->heads % a->kv_heads == 0;
}

}  // namespace

uint64_t paged_attention_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_paged_attention_args*>(arguments);
  if (!has_shape(a) || splits_of(a) == 1) return 0;
  return sizeof(float) * static_cast<uint64_t>(a->tokens * a->heads * splits_of(a) * (a->dim + 2));
}

int32_t paged_attention(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_paged_attention_args*>(arguments);
  if (!is_valid(a, exec) || !has_shape(a)) return DS_BAD_ARGUMENT;
  if (!is_index(a->index_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < paged_attention_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const int64_t splits = splits_of(a), rows = a->tokens * a->heads, group = a->heads / a->kv_heads;
  if (rows == 0) return DS_OK;
  const bool wide = a->index_dtype == DS_I64;
  // The sums come first, which keeps their fours aligned.
  float* const sums = splits > 1 ? static_cast<float*>(exec->workspace) : nullptr;
  float* const largest = splits > 1 ? sums + rows * splits * a->dim : nullptr;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const bool packed =
        is_packed<T>(a->q, a->dim, a->q_token_stride, a->q_head_stride) && is_packed<T>(a->y, a->dim) &&
        is_packed<T>(a->key_cache, a->dim, a->key_block_stride, a->key_slot_stride, a->key_head_stride) &&
        is_packed<T>(a->value_cache, a->dim, a->value_block_stride, a->value_slot_stride, a->value_head_stride);
    Paged<T> call = {};
    call.batch = {{a->block_table, wide}, {a->lengths, wide}, {a->query_starts, wide}, a->tokens, a->sequences,
                  a->table_width,         a->blocks,          a->block_size,           group,     a->window};
    call.q = static_cast<const T*>(a->q);
    call.q_token_stride = a->q_token_stride;
    call.q_head_stride = a->q_head_stride;
    call.keys = {static_cast<const T*>(a->key_cache), a->key_block_stride, a->key_slot_stride, a->key_head_stride};
    call.values = {static_cast<const T*>(a->value_cache), a->value_block_stride, a->value_slot_stride,
                   a->value_head_stride};
    call.slopes = a->alibi_slopes;
    call.y = static_cast<T*>(a->y);
    call.sums = sums;
    call.largest = largest;
    call.total = splits > 1 ? largest + rows * splits : nullptr;
    call.kv_heads = a->kv_heads;
    call.splits = splits;
    call.scale = a->scale;
    call.softcap = a->softcap;
    call.heads = {static_cast<int>(a->dim), packed};
    const int32_t status = with_depth(a->dim, [&](auto depth) -> int32_t {
      constexpr int kDepth = decltype(depth)::value;
      return is_wide(a) ? attend<T, PagedSize<kDepth, true>>(exec, call)
                        : attend<T, PagedSize<kDepth, false>>(exec, call);
    });
    if (status != DS_OK || splits == 1) return status;
    return launch(exec, Shape(static_cast<unsigned>(ceil_div(rows, kGroups)), kTileThreads), combine_kernel<T>, call,
                  rows);
  });
}

}  // namespace dsk
