// What forward and backward passes of tiled attention share: where rows lie, which keys are seen, and what is added.
#pragma once

#include "attention/tile.h"

namespace dsk {

// A tensor of heads: rows (outer, head, token) of `dim` elements.
template <typename T>
struct HeadsView {
  T* data;
  int64_t outer_stride;
  int64_t head_stride;
  int64_t token_stride;

  DSK_DEVICE T* slice(int64_t outer, int64_t head) const { return data + outer * outer_stride + head * head_stride; }
};

// Numbers added to scores, of any float dtype.
struct Added {
  const void* data;  // NULL: none
  int32_t dtype;
  int64_t outer_stride;
  int64_t head_stride;
  int64_t query_stride;
  int64_t key_stride;

  DSK_DEVICE float at(int64_t index) const {
    switch (dtype) {
      case DS_F32:
        return static_cast<const float*>(data)[index];
      case DS_BF16:
        return to_float(static_cast<const bfloat16*>(data)[index]);
      default:
        return to_float(static_cast<const float16*>(data)[index]);
    }
  }
};

// What decides about the scores of a call.
struct Scores {
  int64_t outer;
  int64_t heads;
  int tokens;
  float scale;
  bool causal;
  const uint8_t* layout;  // NULL: every block
  int64_t layout_head_stride;
  int layout_shift;  // log2 of the block size
  int layout_blocks;
  int64_t bias_repeat;
  int64_t bias_heads;
  Added key_bias;
  Added bias;
};

// The scores of one (outer, head).
struct SliceScores {
  const Scores& all;
  const uint8_t* layout;
  int64_t key_bias;  // index of key 0
  int64_t bias;      // index of query 0 and key 0

  DSK_DEVICE SliceScores(const Scores& scores, int64_t outer, int64_t head)
      : all(scores),
        layout(scores.layout == nullptr ? nullptr : scores.layout + head * scores.layout_head_stride),
        key_bias(outer * scores.key_bias.outer_stride),
        bias(outer / scores.bias_repeat * scores.bias.outer_stride +
             (scores.bias_heads == 1 ? 0 : head * scores.bias.head_stride)) {}

  // Whether a rectangle of queries and keys may hold a key that is seen.
  DSK_DEVICE bool any(int first_query, int queries, int first_key, int keys) const {
    const int last_query = min(first_query + queries, all.tokens) - 1;
    const int last_key = min(first_key + keys, all.tokens) - 1;
    if (all.causal && first_key > last_query) return false;
    if (layout == nullptr) return true;
    bool found = false;
    for (int row = first_query >> all.layout_shift; row <= last_query >> all.layout_shift; ++row) {
      for (int column = first_key >> all.layout_shift; column <= last_key >> all.layout_shift; ++column) {
        found = found || layout[static_cast<int64_t>(row) * all.layout_blocks + column] != 0;
      }
    }
    return found;
  }

  // The score of a product; -inf where the key is not seen, or the query is not there.
  DSK_DEVICE float of(float product, int query, int key) const {
    if (query >= all.tokens || key >= all.tokens || (all.causal && key > query)) return -INFINITY;
    if (layout != nullptr) {
      const int64_t block = static_cast<int64_t>(query >> all.layout_shift) * all.layout_blocks;
      if (layout[block + (key >> all.layout_shift)] == 0) return -INFINITY;
    }
    float score = product * all.scale;
    if (all.bias.data != nullptr) {
      score += all.bias.at(bias + query * all.bias.query_stride + key * all.bias.key_stride);
    }
    if (all.key_bias.data != nullptr) score += all.key_bias.at(key_bias + key);
    return score;
  }
};

// Args: either of the two argument structs, whose fields have the same names.
template <typename Args>
bool is_valid_attention(const Args* a, const ds_exec* exec) {
  const bool has_shape = is_valid(a, exec) && a->outer >= 0 && a->heads >= 0 && a->tokens >= 0 &&
                         a->tokens < (int64_t{1} << 30) && a->bias_repeat > 0 && a->bias_heads > 0;
  if (!has_shape) return false;
  return a->layout == nullptr || (a->block_size > 0 && (a->block_size & (a->block_size - 1)) == 0);
}

template <typename Args>
Scores scores_of(const Args* a) {
  int shift = 0;
  while (a->layout != nullptr && (1 << shift) < a->block_size) ++shift;
  return {
      a->outer,
      a->heads,
      static_cast<int>(a->tokens),
      a->scale,
      a->causal != 0,
      a->layout,
      a->layout_head_stride,
      shift,
      static_cast<int>(ceil_div(a->tokens, int64_t{1} << shift)),
      a->bias_repeat,
      a->bias_heads,
      {a->key_bias, a->key_bias_dtype, a->tokens, 0, 0, 1},
      {a->bias, a->bias_dtype, a->bias_outer_stride, a->bias_head_stride, a->bias_query_stride, a->bias_key_stride}};
}

template <typename Args>
bool has_known_biases(const Args* a) {
  return (a->key_bias == nullptr || is_float(a->key_bias_dtype)) && (a->bias == nullptr || is_float(a->bias_dtype));
}

// Whether rows of every tensor may be read four elements at once.
template <typename T, typename Args, typename... Dense>
bool is_packed_attention(const Args* a, Dense... dense) {
  return is_packed<T>(a->q, a->dim, a->q_outer_stride, a->q_head_stride, a->q_token_stride) &&
         is_packed<T>(a->k, a->dim, a->k_outer_stride, a->k_head_stride, a->k_token_stride) &&
         is_packed<T>(a->v, a->dim, a->v_outer_stride, a->v_head_stride, a->v_token_stride) &&
         (is_packed<T>(dense, a->dim, a->y_outer_stride, a->y_head_stride, a->y_token_stride) && ...);
}

// Views of a call's tensors: inputs by their own strides, and what lies as y does.
template <typename T>
struct Views {
  HeadsView<const T> q;
  HeadsView<const T> k;
  HeadsView<const T> v;
};

template <typename T, typename Args>
Views<T> views_of(const Args* a) {
  return {{static_cast<const T*>(a->q), a->q_outer_stride, a->q_head_stride, a->q_token_stride},
          {static_cast<const T*>(a->k), a->k_outer_stride, a->k_head_stride, a->k_token_stride},
          {static_cast<const T*>(a->v), a->v_outer_stride, a->v_head_stride, a->v_token_stride}};
}

template <typename T, typename Args>
HeadsView<T> like_y(const Args* a, void* data) {
  return {static_cast<T*>(data), a->y_outer_stride, a->y_head_stride, a->y_token_stride};
}

template <typename T, typename Args>
HeadsView<const T> like_y(const Args* a, const void* data) {
  return {static_cast<const T*>(data), a->y_outer_stride, a->y_head_stride, a->y_token_stride};
}

}  // namespace dsk
