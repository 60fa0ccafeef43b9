/* Argument structs of the ops: normalizations. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_NORM_H
#define DS_KERNEL_NORM_H

#include <stdint.h>

/* rms_norm_forward: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps) of each row.
 * add_rms_norm_forward: with total = x + residual, rounded to `dtype`, in place of x. */
typedef struct ds_rms_norm_forward_args {
  uint32_t struct_size;
  int32_t dtype; /* of x and y */
  int32_t weight_dtype;
  float eps;
  int64_t rows;
  int64_t columns;
  const void* x;
  const void* weight;
  void* y;
  float* rstd;          /* [rows] */
  const void* residual; /* like x, or NULL */
  void* total;          /* like x; NULL without residual */
} ds_rms_norm_forward_args;

/* rms_norm_backward: gradients of x and weight. add_rms_norm_backward: x is the total, and dtotal, the gradient that it
 * has from its other use, is added to dx. */
typedef struct ds_rms_norm_backward_args {
  uint32_t struct_size;
  int32_t dtype;        /* of dy, x and dx */
  int32_t weight_dtype; /* of weight and dweight */
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  const void* dy;
  const void* x;
  const void* weight;
  const float* rstd;
  void* dx;
  void* dweight;
  const void* dtotal; /* like x, or NULL */
} ds_rms_norm_backward_args;

/* layer_norm_forward: y = (x - mean) * rstd * weight + bias of each row; bias may be NULL.
 * add_layer_norm_forward: with total = x + residual, rounded to `dtype`, in place of x. */
typedef struct ds_layer_norm_forward_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t weight_dtype; /* of weight and bias */
  float eps;
  int64_t rows;
  int64_t columns;
  const void* x;
  const void* weight;
  const void* bias;
  void* y;
  float* mean; /* [rows] */
  float* rstd; /* [rows] */
  const void* residual;
  void* total;
} ds_layer_norm_forward_args;

/* layer_norm_backward: gradients of x, weight and bias; dbias may be NULL. add_layer_norm_backward: as for rms_norm. */
typedef struct ds_layer_norm_backward_args {
  uint32_t struct_size;
  int32_t dtype;
  int32_t weight_dtype;
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  const void* dy;
  const void* x;
  const void* weight;
  const float* mean;
  const float* rstd;
  void* dx;
  void* dweight;
  void* dbias;
  const void* dtotal;
} ds_layer_norm_backward_args;

#endif /* DS_KERNEL_NORM_H */
