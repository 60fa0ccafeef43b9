/* Argument structs of the ops: attention. Included by ds_kernel.h, which states the rules.
 *
 * Heads have 1 to 256 elements, which lie next to each other in every tensor. Strides are in elements. */
#ifndef DS_KERNEL_ATTENTION_H
#define DS_KERNEL_ATTENTION_H

#include <stdint.h>

/* paged_attention: y of token i of the n of a sequence = softmax over the keys p <= length - n + i (and
 * p > length - n + i - window) of softcap * tanh(q . k * scale / softcap) + slope * (p - (length - n + i)), times v.
 * Key p of sequence s lies in block block_table[s, p / block_size] at p % block_size. Tokens after the last of
 * query_starts get 0. A start, length or block in use that is out of range: DS_INDEX_OUT_OF_RANGE. */
typedef struct ds_paged_attention_args {
  uint32_t struct_size;
  int32_t dtype;       /* of q, the caches and y */
  int32_t index_dtype; /* DS_I32 or DS_I64: of block_table, lengths and query_starts, which are dense */
  int32_t splits;      /* parts that the keys of a sequence are cut in; 0: as the kernel finds best */
  int64_t tokens;
  int64_t heads;
  int64_t kv_heads; /* divides heads */
  int64_t dim;
  int64_t sequences;
  int64_t blocks;
  int64_t block_size;
  int64_t table_width; /* blocks a sequence may have */
  int64_t window;      /* 0: none */
  float scale;
  float softcap; /* 0: none */
  int64_t q_token_stride;
  int64_t q_head_stride;
  int64_t key_block_stride;
  int64_t key_slot_stride;
  int64_t key_head_stride;
  int64_t value_block_stride;
  int64_t value_slot_stride;
  int64_t value_head_stride;
  const void* q;             /* [tokens, heads, dim] */
  const void* key_cache;     /* [blocks, block_size, kv_heads, dim] */
  const void* value_cache;   /* the same */
  const void* block_table;   /* [sequences, table_width] */
  const void* lengths;       /* [sequences] */
  const void* query_starts;  /* [sequences + 1] */
  const float* alibi_slopes; /* [heads] or NULL */
  void* y;                   /* [tokens, heads, dim], dense */
} ds_paged_attention_args;

/* paged_kv_write_: rows of key and value copied to their slots, block * block_size + place; slot -1 copies nothing. A
 * slot that is not in the cache: DS_INDEX_OUT_OF_RANGE, and other rows may have been written. */
typedef struct ds_paged_kv_write_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t index_dtype; /* DS_I32 or DS_I64 */
  int32_t reserved;
  int64_t tokens;
  int64_t kv_heads;
  int64_t dim;
  int64_t blocks;
  int64_t block_size;
  int64_t key_block_stride;
  int64_t key_slot_stride;
  int64_t key_head_stride;
  int64_t value_block_stride;
  int64_t value_slot_stride;
  int64_t value_head_stride;
  void* key_cache;
  void* value_cache;
  const void* key;   /* [tokens, kv_heads, dim], dense */
  const void* value; /* the same */
  const void* slots; /* [tokens] */
} ds_paged_kv_write_args;

/* block_sparse_attention_forward, evoformer_attention_forward: for each outer index o and head h,
 *   scores[q, k] = q . k * scale + key_bias[o, k] + bias[o / bias_repeat, h or 0, q, k],
 * -inf where a key is not seen: later than its query with `causal`, or in a block that the layout leaves out;
 * y = softmax(scores) v, and lse[o, h, q] the log-sum-exp of the scores. A query that sees nothing: y 0, lse -inf. */
typedef struct ds_tiled_attention_forward_args {
  uint32_t struct_size;
  int32_t dtype;          /* of q, k, v and y */
  int32_t key_bias_dtype; /* DS_NONE without */
  int32_t bias_dtype;     /* DS_NONE without */
  int32_t causal;
  int32_t block_size; /* of the layout, a power of two */
  float scale;
  int32_t reserved;
  int64_t outer;
  int64_t heads;
  int64_t tokens; /* queries, and keys */
  int64_t dim;
  int64_t q_outer_stride;
  int64_t q_head_stride;
  int64_t q_token_stride;
  int64_t k_outer_stride;
  int64_t k_head_stride;
  int64_t k_token_stride;
  int64_t v_outer_stride;
  int64_t v_head_stride;
  int64_t v_token_stride;
  int64_t y_outer_stride;
  int64_t y_head_stride;
  int64_t y_token_stride;
  int64_t layout_head_stride; /* 0: one layout for all heads */
  int64_t bias_repeat;        /* outer indices that share a bias */
  int64_t bias_heads;         /* heads, or 1: one bias for all */
  int64_t bias_outer_stride;
  int64_t bias_head_stride;
  int64_t bias_query_stride;
  int64_t bias_key_stride;
  const void* q;
  const void* k;
  const void* v;
  const uint8_t* layout; /* [heads or 1, blocks, blocks] of 0 and 1, or NULL: all */
  const void* key_bias;  /* [outer, tokens], dense, or NULL */
  const void* bias;      /* or NULL */
  void* y;
  float* lse; /* [outer, heads, tokens] */
} ds_tiled_attention_forward_args;

/* block_sparse_attention_backward, evoformer_attention_backward: gradients of the above, with the probabilities
 * exp(scores - lse). dy, y, dq, dk and dv have the strides called y_. dkey_bias and dbias may be NULL. */
typedef struct ds_tiled_attention_backward_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t key_bias_dtype; /* of key_bias and dkey_bias */
  int32_t bias_dtype;     /* of bias and dbias */
  int32_t causal;
  int32_t block_size;
  float scale;
  int32_t reserved;
  int64_t outer;
  int64_t heads;
  int64_t tokens;
  int64_t dim;
  int64_t q_outer_stride;
  int64_t q_head_stride;
  int64_t q_token_stride;
  int64_t k_outer_stride;
  int64_t k_head_stride;
  int64_t k_token_stride;
  int64_t v_outer_stride;
  int64_t v_head_stride;
  int64_t v_token_stride;
  int64_t y_outer_stride;
  int64_t y_head_stride;
  int64_t y_token_stride;
  int64_t layout_head_stride;
  int64_t bias_repeat;
  int64_t bias_heads;
  int64_t bias_outer_stride;
  int64_t bias_head_stride;
  int64_t bias_query_stride;
  int64_t bias_key_stride;
  const void* q;
  const void* k;
  const void* v;
  const uint8_t* layout;
  const void* key_bias;
  const void* bias;
  const void* dy;
  const void* y;
  const float* lse;
  void* dq;
  void* dk;
  void* dv;
  void* dkey_bias; /* [outer, tokens] */
  void* dbias;     /* [outer / bias_repeat, bias_heads, tokens, tokens], dense */
} ds_tiled_attention_backward_args;

#endif /* DS_KERNEL_ATTENTION_H */
