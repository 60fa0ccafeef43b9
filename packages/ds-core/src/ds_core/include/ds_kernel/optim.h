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

/* adam8bit_: ds_adam_args with both moments as a byte an element and the largest magnitude of each block, both updated.
 * A magnitude is a code of a dynamic tree of n codes (n = 128 for exp_avg, whose highest bit is the sign, and 256 for
 * exp_avg_sq): 0, or, with k the highest power of two in the code, (0.1 + 0.9 (code - k + 1) / k) / 10^log2(n / 2 / k),
 * rounded to float32; times the scale of its block. The new code is the nearest to |x| / scale, the lower one where two
 * are as near; edges between codes are half their sum in float32. A block whose scale is no normal number has codes 0.
 */
typedef struct ds_adam8bit_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t copy_dtype;
  int32_t adamw;
  int64_t numel;
  int64_t block_size; /* elements that share a scale; the last block may have fewer */
  void* param;
  const void* grad;
  uint8_t* exp_avg;
  uint8_t* exp_avg_sq;
  float* exp_avg_scale; /* [ceil(numel / block_size)] */
  float* exp_avg_sq_scale;
  void* copy_out;
  const float* grad_factor;
  float lerp_weight;
  float beta2;
  float square_weight;
  float decay;
  float weight_decay;
  float eps;
  float correction2_sqrt;
  float negative_step_size;
  int64_t rounding_seed; /* of param only: codes are always the nearest */
  int64_t rounding_offset;
} ds_adam8bit_args;

/* adagrad_: one Adagrad step, in the terms of ds_adam_args:
 *   p, g, s = the inputs as float32;  g = g * grad_factor;  weight_decay != 0: g = fma(p, weight_decay, g)
 *   s = fma(g, g, s)
 *   p = p + (negative_step_size * g) / (sqrt(s) + eps) */
typedef struct ds_adagrad_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype; /* of state_sum */
  int32_t copy_dtype;
  int64_t numel;
  void* param;
  const void* grad;
  void* state_sum;
  void* copy_out;
  const float* grad_factor;
  float weight_decay;
  float eps;
  float negative_step_size; /* -lr / (1 + (step - 1) * lr_decay) */
  int64_t rounding_seed;
  int64_t rounding_offset;
} ds_adagrad_args;

/* lion_: one Lion step, in the terms of ds_adam_args, where sign is -1, 0 or 1, and 0 for NaN:
 *   p, g, m = the inputs as float32;  g = g * grad_factor
 *   p = fma(sign(fma(g, weight1, m * beta1)), negative_lr, p * decay)
 *   m = fma(g, weight2, m * beta2) */
typedef struct ds_lion_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype; /* of exp_avg */
  int32_t copy_dtype;
  int64_t numel;
  void* param;
  const void* grad;
  void* exp_avg;
  void* copy_out;
  const float* grad_factor;
  float decay; /* 1 - lr * weight_decay */
  float beta1;
  float weight1; /* 1 - beta1 */
  float beta2;
  float weight2; /* 1 - beta2 */
  float negative_lr;
  int64_t rounding_seed;
  int64_t rounding_offset;
} ds_lion_args;

/* sgd_: one step of gradient descent, in the terms of ds_adam_args:
 *   p, g, b = the inputs as float32;  g = g * grad_factor;  weight_decay != 0: g = fma(p, weight_decay, g)
 *   with a momentum_buffer:  b = is_first ? g : fma(g, grad_weight, b * momentum);  g = nesterov ? fma(b, momentum, g)
 * : b p = fma(g, negative_lr, p) */
typedef struct ds_sgd_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype; /* of momentum_buffer */
  int32_t copy_dtype;
  int32_t nesterov;
  int32_t is_first; /* the buffer is written, not read */
  int64_t numel;
  void* param;
  const void* grad;
  void* momentum_buffer; /* NULL without momentum */
  void* copy_out;
  const float* grad_factor;
  float weight_decay;
  float momentum;
  float grad_weight; /* 1 - dampening */
  float negative_lr;
  int64_t rounding_seed;
  int64_t rounding_offset;
} ds_sgd_args;

/* lamb_moments_ and lamb_apply_: the two passes of a LAMB step over segments, ranges [bounds[2i], bounds[2i + 1]) of
 * the tensors; elements outside of segments are not touched. In the terms of ds_adam_args, with all states as stored:
 *   direction(p, m, v) = fma(p, weight_decay, (m / correction1) / d)
 *     where d = eps_inside_sqrt ? sqrt(v / correction2 + eps) : sqrt(v / correction2) + eps
 * lamb_moments_:  g = g * grad_factor;  m = fma(g, weight1, m * beta1);  v = fma(weight2 * g, g, v * beta2)
 *   sums[2i], sums[2i + 1] = the sums of p^2 and direction^2 over segment i, in float64: element j of a segment goes to
 *   lane j mod 16 of unit j / 65536; lanes are added pairwise (8 apart, 4, 2, 1), then units in order
 * lamb_apply_:  p = fma(direction, negative_lr * ratios[i], p) */
typedef struct ds_lamb_moments_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype; /* of exp_avg and exp_avg_sq */
  int32_t eps_inside_sqrt;
  int64_t numel;
  int64_t segment_count;
  const int64_t* bounds;
  const void* param;
  const void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  double* sums;
  const float* grad_factor;
  float beta1;
  float weight1; /* 1 - beta1 */
  float beta2;
  float weight2;     /* 1 - beta2 */
  float correction1; /* 1 - beta1 ** step, or 1 */
  float correction2; /* 1 - beta2 ** step, or 1 */
  float eps;
  float weight_decay;
  int64_t rounding_seed;
  int64_t rounding_offset;
} ds_lamb_moments_args;

typedef struct ds_lamb_apply_args {
  uint32_t struct_size;
  int32_t param_dtype;
  int32_t state_dtype;
  int32_t copy_dtype;
  int32_t eps_inside_sqrt;
  int64_t numel;
  int64_t segment_count;
  const int64_t* bounds;
  const float* ratios; /* one a segment */
  void* param;
  const void* exp_avg;
  const void* exp_avg_sq;
  void* copy_out;
  float correction1;
  float correction2;
  float eps;
  float weight_decay;
  float negative_lr;
  int64_t rounding_seed;
  int64_t rounding_offset;
} ds_lamb_apply_args;

/* sum_of_squares: out = sum of x[i]^2, in float64. */
typedef struct ds_sum_of_squares_args {
  uint32_t struct_size;
  int32_t dtype;
  int64_t numel;
  const void* x;
  double* out;
} ds_sum_of_squares_args;

#endif /* DS_KERNEL_OPTIM_H */
