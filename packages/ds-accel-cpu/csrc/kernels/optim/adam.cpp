// adam_: unscale, weight decay, both moments, the update and the low-precision copy in one pass over memory.
#include "convert.h"
#include "fused.h"
#include "optim/rows.h"

namespace dsk {
namespace {

constexpr int64_t kUnit = 64 * kBlock;       // smallest task, in elements
constexpr int64_t kStreamBytes = 8ll << 20;  // a copy larger than this is not worth caching

struct Scalars {
  float factor;
  float lerp_weight;
  float beta2;
  float square_weight;
  float decay;
  float weight_decay;
  float eps;
  float correction2_sqrt;
  float negative_step_size;
};

// One block in float32, in place; the order of operations is the one ds_kernel.h states.
template <bool kSmallWeight, bool kAdamW>
void update(float* __restrict param, const float* __restrict grad, float* __restrict exp_avg,
            float* __restrict exp_avg_sq, int64_t n, const Scalars s) {
  const float lerp_weight = kSmallWeight ? s.lerp_weight : s.lerp_weight - 1.0f;
  for (int64_t i = 0; i < n; ++i) {
    float p = param[i];
    float g = grad[i] * s.factor;
    if (kAdamW) {
      p = p * s.decay;
    } else {
      g = fma(p, s.weight_decay, g);
    }
    float m = exp_avg[i];
    m = fma(lerp_weight, g - m, kSmallWeight ? m : g);
    const float v = fma(s.square_weight * g, g, exp_avg_sq[i] * s.beta2);
    const float denominator = __builtin_sqrtf(v) / s.correction2_sqrt + s.eps;
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    param[i] = p + (s.negative_step_size * m) / denominator;
  }
}

using Update = void (*)(float*, const float*, float*, float*, int64_t, Scalars);

Update choose_update(const ds_adam_args& a) {
  const bool small = a.lerp_weight < 0.5f && a.lerp_weight > -0.5f;
  if (small) return a.adamw ? update<true, true> : update<true, false>;
  return a.adamw ? update<false, true> : update<false, false>;
}

struct Job {
  ds_adam_args a;
  Scalars scalars;
  Update update;
  Rounding param_rounding;
  Rounding exp_avg_rounding;
  Rounding exp_avg_sq_rounding;
  bool stream_copy;
};

// A tensor's block as float32: the tensor itself when it is float32, else a staged copy.
DSK_INLINE float* stage(int32_t dtype, void* base, int64_t first, int64_t n, float* buffer) {
  if (dtype == DS_F32) return reinterpret_cast<float*>(at(base, first, 4));
  load_block(dtype, at(base, first, 2), buffer, n);
  return buffer;
}

DSK_INLINE void unstage(int32_t dtype, void* base, int64_t first, int64_t n, const float* block,
                        const Rounding& rounding) {
  if (dtype != DS_F32) store_block(dtype, block, at(base, first, 2), n, rounding, first);
}

void copy_out(const Job& job, const float* param, int64_t first, int64_t n) {
  const int64_t bytes = element_bytes(job.a.copy_dtype);
  char* out = at(job.a.copy_out, first, bytes);
  if (!job.stream_copy) {
    store_block(job.a.copy_dtype, param, out, n);
    return;
  }
  alignas(64) char buffer[kBlock * 4];
  store_block(job.a.copy_dtype, param, buffer, n);
  stream_out(buffer, out, n * bytes);
}

void run_block(const Job& job, int64_t first, int64_t n) {
  alignas(64) float param_buffer[kBlock];
  alignas(64) float grad_buffer[kBlock];
  alignas(64) float exp_avg_buffer[kBlock];
  alignas(64) float exp_avg_sq_buffer[kBlock];
  const ds_adam_args& a = job.a;
  float* param = stage(a.param_dtype, a.param, first, n, param_buffer);
  float* grad = stage(a.grad_dtype, const_cast<void*>(a.grad), first, n, grad_buffer);
  float* exp_avg = stage(a.state_dtype, a.exp_avg, first, n, exp_avg_buffer);
  float* exp_avg_sq = stage(a.state_dtype, a.exp_avg_sq, first, n, exp_avg_sq_buffer);
  job.update(param, grad, exp_avg, exp_avg_sq, n, job.scalars);
  unstage(a.param_dtype, a.param, first, n, param, job.param_rounding);
  unstage(a.state_dtype, a.exp_avg, first, n, exp_avg, job.exp_avg_rounding);
  unstage(a.state_dtype, a.exp_avg_sq, first, n, exp_avg_sq, job.exp_avg_sq_rounding);
  if (a.copy_dtype == DS_NONE) return;
  if (a.param_dtype != DS_F32) load_block(a.param_dtype, at(a.param, first, 2), param, n);
  copy_out(job, param, first, n);
}

void run_task(const Job& job, int64_t begin, int64_t end) {
  for (int64_t first = begin; first < end; first += kBlock) run_block(job, first, min64(kBlock, end - first));
  if (job.stream_copy) stream_fence();
}

}  // namespace

int32_t adam(const void* arguments, const ds_exec* exec) {
  const ds_adam_args* a = static_cast<const ds_adam_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(ds_adam_args) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->param_dtype) || !is_float(a->grad_dtype) || !is_float(a->state_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (a->copy_dtype != DS_NONE && !is_float(a->copy_dtype)) return DS_UNSUPPORTED_DTYPE;
  const float factor = a->grad_factor != nullptr ? *a->grad_factor : 1.0f;
  Job job = {*a,
             {factor, a->lerp_weight, a->beta2, a->square_weight, a->decay, a->weight_decay, a->eps,
              a->correction2_sqrt, a->negative_step_size},
             choose_update(*a),
             make_rounding(a->rounding_seed, a->rounding_offset, 0),
             make_rounding(a->rounding_seed, a->rounding_offset, 1),
             make_rounding(a->rounding_seed, a->rounding_offset, 2),
             a->copy_dtype != DS_NONE && a->numel * element_bytes(a->copy_dtype) > kStreamBytes};
  const int64_t size = units_per_task(exec, a->numel, kUnit) * kUnit;
  parallel_for(exec, ceil_div(a->numel, size),
               [&job, size](int64_t task) { run_task(job, task * size, min64(job.a.numel, (task + 1) * size)); });
  return DS_OK;
}

}  // namespace dsk
