// adam_, adagrad_, lion_ and sgd_: one pass over memory each. The order of operations is the one ds_kernel/optim.h
// states.
#include "exact.h"
#include "rounding.h"

// The param as it was stored, rounded to nearest even into the low-precision copy.
static inline void copy_out_of(int param_dtype, Source param, long i, float p, int copy_dtype, Target copy_out) {
  if (copy_dtype == kNone) return;
  store(copy_dtype, copy_out, i, param_dtype == kF32 ? p : load(param_dtype, param, i));
}

kernel void adam(int param_dtype, int grad_dtype, int state_dtype, int copy_dtype, int adamw, int small_weight,
                 long numel, global void* param, const global void* grad, global void* exp_avg, global void* exp_avg_sq,
                 global void* copy_out, const global float* grad_factor, float lerp_weight, float beta2,
                 float square_weight, float decay, float weight_decay, float eps, float correction2_sqrt,
                 float negative_step_size, int by_chance, ulong param_keys, ulong avg_keys, ulong sq_keys,
                 ulong offset) {
  const float factor = grad_factor != 0 ? grad_factor[0] : 1.0f;
  for (long i = item(); i < numel; i += items()) {
    float p = load(param_dtype, param, i);
    float g = load(grad_dtype, grad, i) * factor;
    if (adamw != 0) {
      p = p * decay;
    } else {
      g = fma(p, weight_decay, g);
    }
    float m = load(state_dtype, exp_avg, i);
    m = fma(lerp_weight, g - m, small_weight != 0 ? m : g);
    const float v = fma(square_weight * g, g, load(state_dtype, exp_avg_sq, i) * beta2);
    p = p + divide(negative_step_size * m, divide(root(v), correction2_sqrt) + eps);
    store_rounded(param_dtype, param, i, p, by_chance, param_keys, offset);
    store_rounded(state_dtype, exp_avg, i, m, by_chance, avg_keys, offset);
    store_rounded(state_dtype, exp_avg_sq, i, v, by_chance, sq_keys, offset);
    copy_out_of(param_dtype, param, i, p, copy_dtype, copy_out);
  }
}

kernel void adagrad(int param_dtype, int grad_dtype, int state_dtype, int copy_dtype, long numel, global void* param,
                    const global void* grad, global void* state_sum, global void* copy_out,
                    const global float* grad_factor, float weight_decay, float eps, float negative_step_size,
                    int by_chance, ulong param_keys, ulong sum_keys, ulong offset) {
  const float factor = grad_factor != 0 ? grad_factor[0] : 1.0f;
  for (long i = item(); i < numel; i += items()) {
    float p = load(param_dtype, param, i);
    float g = load(grad_dtype, grad, i) * factor;
    if (weight_decay != 0.0f) g = fma(p, weight_decay, g);
    const float sum = fma(g, g, load(state_dtype, state_sum, i));
    p = p + divide(negative_step_size * g, root(sum) + eps);
    store_rounded(param_dtype, param, i, p, by_chance, param_keys, offset);
    store_rounded(state_dtype, state_sum, i, sum, by_chance, sum_keys, offset);
    copy_out_of(param_dtype, param, i, p, copy_dtype, copy_out);
  }
}

kernel void lion(int param_dtype, int grad_dtype, int state_dtype, int copy_dtype, long numel, global void* param,
                 const global void* grad, global void* exp_avg, global void* copy_out, const global float* grad_factor,
                 float decay, float beta1, float weight1, float beta2, float weight2, float negative_lr, int by_chance,
                 ulong param_keys, ulong avg_keys, ulong offset) {
  const float factor = grad_factor != 0 ? grad_factor[0] : 1.0f;
  for (long i = item(); i < numel; i += items()) {
    float p = load(param_dtype, param, i);
    const float g = load(grad_dtype, grad, i) * factor;
    const float m = load(state_dtype, exp_avg, i);
    const float c = fma(g, weight1, m * beta1);
    const float direction = (c > 0.0f ? 1.0f : 0.0f) - (c < 0.0f ? 1.0f : 0.0f);
    p = fma(direction, negative_lr, p * decay);
    store_rounded(param_dtype, param, i, p, by_chance, param_keys, offset);
    store_rounded(state_dtype, exp_avg, i, fma(g, weight2, m * beta2), by_chance, avg_keys, offset);
    copy_out_of(param_dtype, param, i, p, copy_dtype, copy_out);
  }
}

kernel void sgd(int param_dtype, int grad_dtype, int state_dtype, int copy_dtype, int nesterov, int is_first,
                long numel, global void* param, const global void* grad, global void* momentum_buffer,
                global void* copy_out, const global float* grad_factor, float weight_decay, float momentum,
                float grad_weight, float negative_lr, int by_chance, ulong param_keys, ulong buffer_keys,
                ulong offset) {
  const float factor = grad_factor != 0 ? grad_factor[0] : 1.0f;
  for (long i = item(); i < numel; i += items()) {
    float p = load(param_dtype, param, i);
    float g = load(grad_dtype, grad, i) * factor;
    if (weight_decay != 0.0f) g = fma(p, weight_decay, g);
    if (momentum_buffer != 0) {
      const float b = is_first != 0 ? g : fma(g, grad_weight, load(state_dtype, momentum_buffer, i) * momentum);
      store_rounded(state_dtype, momentum_buffer, i, b, by_chance, buffer_keys, offset);
      g = nesterov != 0 ? fma(b, momentum, g) : b;
    }
    p = fma(g, negative_lr, p);
    store_rounded(param_dtype, param, i, p, by_chance, param_keys, offset);
    copy_out_of(param_dtype, param, i, p, copy_dtype, copy_out);
  }
}
