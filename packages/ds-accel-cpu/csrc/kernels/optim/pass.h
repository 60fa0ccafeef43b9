// One pass of an elementwise optimizer over flat tensors: a block at a time as float32 in the first-level cache, then
// rounded back into the tensors and copied into the low-precision working values.
#pragma once

#include "convert.h"
#include "fused.h"

namespace dsk {

constexpr int64_t kPassUnit = 64 * kBlock;   // smallest task, in elements
constexpr int64_t kStreamBytes = 8ll << 20;  // a copy larger than this is not worth caching

// The tensors of one call. State `i` draws its random bits from stream `i + 1`, the param from stream 0.
template <int kStates>
struct Pass {
  int64_t numel;
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t state_dtype;
  int32_t copy_dtype;
  void* param;
  const void* grad;  // NULL: the update reads none
  void* states[kStates > 0 ? kStates : 1];
  void* copy_out;
  Rounding param_rounding;
  Rounding state_rounding[kStates > 0 ? kStates : 1];
  bool stream_copy;

  bool dtypes_served() const {
    return is_float(param_dtype) && (grad == nullptr || is_float(grad_dtype)) &&
           (kStates == 0 || is_float(state_dtype)) && (copy_dtype == DS_NONE || is_float(copy_dtype));
  }
};

// What every argument struct of an optimizer has; its states are put in by the caller.
template <int kStates, typename Args>
Pass<kStates> make_pass(const Args& a, int32_t state_dtype) {
  Pass<kStates> pass = {};
  pass.numel = a.numel;
  pass.param_dtype = a.param_dtype;
  pass.grad_dtype = a.grad_dtype;
  pass.state_dtype = state_dtype;
  pass.copy_dtype = a.copy_dtype;
  pass.param = a.param;
  pass.grad = a.grad;
  pass.copy_out = a.copy_out;
  pass.param_rounding = make_rounding(a.rounding_seed, a.rounding_offset, 0);
  for (int i = 0; i < kStates; ++i) {
    pass.state_rounding[i] = make_rounding(a.rounding_seed, a.rounding_offset, static_cast<uint64_t>(i) + 1);
  }
  pass.stream_copy = a.copy_dtype != DS_NONE && a.numel * element_bytes(a.copy_dtype) > kStreamBytes;
  return pass;
}

template <typename Args>
bool is_valid(const Args* a, const ds_exec* exec) {
  return usable(exec) && a->struct_size >= sizeof(Args) && a->numel >= 0;
}

inline float factor_of(const float* grad_factor) { return grad_factor != nullptr ? *grad_factor : 1.0f; }

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

template <int kStates>
void copy_block_out(const Pass<kStates>& pass, const float* param, int64_t first, int64_t n) {
  const int64_t bytes = element_bytes(pass.copy_dtype);
  char* out = at(pass.copy_out, first, bytes);
  if (!pass.stream_copy) {
    store_block(pass.copy_dtype, param, out, n);
    return;
  }
  alignas(64) char buffer[kBlock * 4];
  store_block(pass.copy_dtype, param, buffer, n);
  stream_out(buffer, out, n * bytes);
}

template <int kStates, typename Update>
void run_block(const Pass<kStates>& pass, const Update& update, int64_t first, int64_t n) {
  alignas(64) float param_buffer[kBlock];
  alignas(64) float grad_buffer[kBlock];
  alignas(64) float state_buffers[kStates > 0 ? kStates : 1][kBlock];
  float* states[kStates > 0 ? kStates : 1] = {};
  float* param = stage(pass.param_dtype, pass.param, first, n, param_buffer);
  const float* grad = nullptr;
  if (pass.grad != nullptr) grad = stage(pass.grad_dtype, const_cast<void*>(pass.grad), first, n, grad_buffer);
  for (int i = 0; i < kStates; ++i) {
    states[i] = stage(pass.state_dtype, pass.states[i], first, n, state_buffers[i]);
  }
  update(param, grad, states, n);
  unstage(pass.param_dtype, pass.param, first, n, param, pass.param_rounding);
  for (int i = 0; i < kStates; ++i) {
    unstage(pass.state_dtype, pass.states[i], first, n, states[i], pass.state_rounding[i]);
  }
  if (pass.copy_dtype == DS_NONE) return;
  if (pass.param_dtype != DS_F32) load_block(pass.param_dtype, at(pass.param, first, 2), param, n);
  copy_block_out(pass, param, first, n);
}

// Runs update(param, grad, states, n) on every block; all are float32 and changed in place, except for the gradient.
template <int kStates, typename Update>
int32_t run_pass(const Pass<kStates>& pass, const ds_exec* exec, const Update& update) {
  if (!pass.dtypes_served()) return DS_UNSUPPORTED_DTYPE;
  const int64_t size = units_per_task(exec, pass.numel, kPassUnit) * kPassUnit;
  parallel_for(exec, ceil_div(pass.numel, size), [&pass, &update, size](int64_t task) {
    const int64_t end = min64(pass.numel, (task + 1) * size);
    for (int64_t first = task * size; first < end; first += kBlock) {
      run_block(pass, update, first, min64(kBlock, end - first));
    }
    if (pass.stream_copy) stream_fence();
  });
  return DS_OK;
}

}  // namespace dsk
