/* Argument structs of the ops: rows moved by index. Included by ds_kernel.h, which states the rules.
 *
 * An index that names no row: DS_INDEX_OUT_OF_RANGE, and nothing is written. All tensors are dense. */
#ifndef DS_KERNEL_TOKENS_H
#define DS_KERNEL_TOKENS_H

#include <stdint.h>

/* gather_rows: y[b, m] = x[b, index[b, m]], copied as bytes. */
typedef struct ds_gather_rows_args {
  uint32_t struct_size;
  int32_t reserved;
  int64_t batch;
  int64_t rows;  /* of x, each batch */
  int64_t taken; /* of y, each batch */
  int64_t row_bytes;
  const void* x;
  const int64_t* index; /* [batch, taken] */
  void* y;
} ds_gather_rows_args;

/* replace_rows: y = base with y[b, index[b, m]] = x[b, m] (zeros if x is NULL). The indices of a batch rise strictly,
 * or DS_INDEX_OUT_OF_RANGE. */
typedef struct ds_replace_rows_args {
  uint32_t struct_size;
  int32_t reserved;
  int64_t batch;
  int64_t rows;
  int64_t taken;
  int64_t row_bytes;
  const void* base;
  const void* x;
  const int64_t* index;
  void* y;
} ds_replace_rows_args;

/* scatter_rows: y[b, r] = sum of weights[b, m] * x[b, m] over the m with index[b, m] = r, in the order of m, in
 * float32; without weights they are 1. */
typedef struct ds_scatter_rows_args {
  uint32_t struct_size;
  int32_t dtype;        /* of x and y */
  int32_t weight_dtype; /* DS_NONE without weights */
  int32_t reserved;
  int64_t batch;
  int64_t rows;  /* of y, each batch */
  int64_t taken; /* of x, each batch */
  int64_t columns;
  const void* x;
  const int64_t* index;
  const void* weights; /* [batch, taken] or NULL */
  void* y;
} ds_scatter_rows_args;

/* scatter_rows_backward: dx[b, m] = weights[b, m] * dy[b, index[b, m]], dweights[b, m] = x[b, m] . dy[b, index[b, m]].
 */
typedef struct ds_scatter_rows_backward_args {
  uint32_t struct_size;
  int32_t dtype; /* of dy, x and dx */
  int32_t weight_dtype;
  int32_t reserved;
  int64_t batch;
  int64_t rows;
  int64_t taken;
  int64_t columns;
  const void* dy;
  const void* x;
  const int64_t* index;
  const void* weights;
  void* dx;
  void* dweights;
} ds_scatter_rows_backward_args;

/* combine_rows: y[t] = sum over k, in order, of weights[t, k] * x[index[t, k]], in float32; index -1 adds nothing. */
typedef struct ds_combine_rows_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t weight_dtype;
  int32_t reserved;
  int64_t rows;   /* of x */
  int64_t tokens; /* of y */
  int64_t slots;  /* rows combined for a token */
  int64_t columns;
  const void* x;
  const int64_t* index; /* [tokens, slots] */
  const void* weights;  /* [tokens, slots] */
  void* y;
} ds_combine_rows_args;

/* combine_rows_backward: dx[r] = sum of weights[t, k] * dy[t] over the (t, k) with index[t, k] = r, in order;
 * dweights[t, k] = dy[t] . x[index[t, k]]. */
typedef struct ds_combine_rows_backward_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t weight_dtype;
  int32_t reserved;
  int64_t rows;
  int64_t tokens;
  int64_t slots;
  int64_t columns;
  const void* dy;
  const void* x;
  const int64_t* index;
  const void* weights;
  void* dx;
  void* dweights;
} ds_combine_rows_backward_args;

#endif /* DS_KERNEL_TOKENS_H */
