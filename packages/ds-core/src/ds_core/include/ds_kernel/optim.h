/* Argument structs of the ops: optimizers and what they read. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_OPTIM_H
#define DS_KERNEL_OPTIM_H

#include <stdint.h>

/* adam_: one Adam or AdamW step over `numel` elements. Arithmetic in float32, in exactly this order, where fma is the
 * fused operation and every other line rounds once per operation:
 *   p, g, m, v = the inputs as float32;  g = g * grad_factor
 *   adamw: p = p * decay                     otherwise: g = fma(p, weight_decay, g)
 *   m = |lerp_weight| < 0.5 ? fma(lerp_weight, g - m, m) : fma(lerp_weight - 1, g - m, g)
 *   v = fma(square_weight * g, g, v * beta2)
 *   p = p + (negative_step_size * m) / (sqrt(v) / correction2_sqrt + eps)
 * param and the states are then rounded to their dtype (to nearest even, or stochastically), and the param as stored is
 * rounded to nearest even into copy_out. */
typedef struct ds_adam_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype; /* of exp_avg and exp_avg_sq */
  int32_t copy_dtype;  /* DS_NONE without copy_out */
  int32_t adamw;
  int64_t numel;
  void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  void* copy_out;
  const float* grad_factor; /* one float in the memory of the device, or NULL for 1 */
  float lerp_weight;        /* 1 - beta1 */
  float beta2;
  float square_weight; /* 1 - beta2 */
  float decay;         /* 1 - lr * weight_decay */
  float weight_decay;
  float eps;
  float correction2_sqrt;   /* sqrt(1 - beta2 ** step), or 1 */
  float negative_step_size; /* -lr / (1 - beta1 ** step), or -lr */
  int64_t rounding_seed;    /* below 0: round to nearest even. Otherwise stochastic, see ds_core/ops/rounding.py */
  int64_t rounding_offset;  /* index of the first element in the rounding sequence */
} ds_adam_args;

/* sum_of_squares: out = sum of x[i]^2, in float64. */
typedef struct ds_sum_of_squares_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t numel;
  const void* x;
  double* out;
} ds_sum_of_squares_args;

#endif /* DS_KERNEL_OPTIM_H */
