/* Argument structs of the ops: rotary embeddings, activations and softmax. Included by ds_kernel.h, which states the
 * rules. */
#ifndef DS_KERNEL_ACTIVATION_H
#define DS_KERNEL_ACTIVATION_H

#include <stdint.h>

/* What a gate goes through. */
enum ds_activation {
  DS_SILU = 0,
  DS_GELU = 1,      /* with the error function */
  DS_GELU_TANH = 2, /* with its approximation by tanh */
  DS_RELU = 3
};

/* rotary and rotary_: turns pairs of the first 2 * half elements of each head by the angle of its token; the other
 * elements are copied. Arithmetic in float32, one rounding an operation:
 *   first' = first * cos - second * sin;  second' = second * cos + first * sin   (sin negated if inverse)
 * A pair is (i, i + half), or (2i, 2i + 1) if interleaved. x and y are [batch, tokens, heads, dim] with strides of the
 * first three and dense heads; y may be x. */
typedef struct ds_rotary_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t interleaved;
  int32_t inverse;
  int64_t batch;
  int64_t tokens;
  int64_t heads;
  int64_t dim;
  int64_t half;
  int64_t table_rows;
  int64_t x_batch_stride;
  int64_t x_token_stride;
  int64_t x_head_stride;
  int64_t y_batch_stride;
  int64_t y_token_stride;
  int64_t y_head_stride;
  const void* x;
  const float* cos; /* [table_rows, half] */
  const float* sin;
  const int64_t* positions; /* [batch, tokens], rows of the tables; others: DS_INDEX_OUT_OF_RANGE, nothing written */
  void* y;
} ds_rotary_args;

/* gated_activation: y = activation(gate) * up. Rows of gate and up are dense, and a stride apart; y is dense. */
typedef struct ds_gated_activation_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t kind; /* enum ds_activation */
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t gate_stride;
  int64_t up_stride;
  const void* gate;
  const void* up;
  void* y;
} ds_gated_activation_args;

/* gated_activation_backward: gradients of gate and up, dy being dense. */
typedef struct ds_gated_activation_backward_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t kind;
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t gate_stride;
  int64_t up_stride;
  int64_t dgate_stride;
  int64_t dup_stride;
  const void* dy;
  const void* gate;
  const void* up;
  void* dgate;
  void* dup;
} ds_gated_activation_backward_args;

/* softmax_forward: y = softmax(x * scale + mask) of each row of x [outer, middle, queries, keys], over the keys that
 * the row may see: the first lengths[outer], and if causal those up to its own, the last query seeing the last key.
 * What is not seen is 0; a row that sees nothing, or only -inf, is 0 throughout. Rows of the mask are dense. */
typedef struct ds_softmax_forward_args {
  uint32_t struct_size;
  int32_t dtype;      /* of x and y */
  int32_t mask_dtype; /* DS_NONE without mask */
  int32_t causal;
  int64_t outer;
  int64_t middle;
  int64_t queries;
  int64_t keys;
  int64_t mask_outer_stride;
  int64_t mask_middle_stride;
  int64_t mask_query_stride;
  const void* x;
  const void* mask;
  const int64_t* lengths; /* [outer] or NULL */
  void* y;
  double scale; /* rounded to float32 */
} ds_softmax_forward_args;

/* softmax_backward: dx = (dy - sum(dy * y)) * y * scale of each row. */
typedef struct ds_softmax_backward_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t rows;
  int64_t columns;
  const void* dy;
  const void* y;
  void* dx;
  double scale;
} ds_softmax_backward_args;

#endif /* DS_KERNEL_ACTIVATION_H */
