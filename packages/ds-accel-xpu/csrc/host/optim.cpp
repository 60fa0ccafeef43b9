// adam_, adagrad_, lion_, sgd_ and sum_of_squares.
#include "rows.h"

namespace dsk {
namespace {

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec, int32_t state_dtype) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0) return DS_BAD_ARGUMENT;
  const bool served = is_float(a->param_dtype) && is_float(a->grad_dtype) && is_float(state_dtype) &&
                      (a->copy_dtype == DS_NONE || is_float(a->copy_dtype));
  return served ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

}  // namespace

int32_t adam(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_adam_args*>(arguments);
  const int32_t refused = refusal(a, exec, a->state_dtype);
  if (refused != DS_OK) return refused;
  const bool small = a->lerp_weight < 0.5f && a->lerp_weight > -0.5f;
  return launch<kernels::adam>(
      exec, groups_for(a->numel), a->param_dtype, a->grad_dtype, a->state_dtype, a->copy_dtype, a->adamw,
      static_cast<int32_t>(small), a->numel, a->param, a->grad, a->exp_avg, a->exp_avg_sq, a->copy_out, a->grad_factor,
      small ? a->lerp_weight : a->lerp_weight - 1.0f, a->beta2, a->square_weight, a->decay, a->weight_decay, a->eps,
      a->correction2_sqrt, a->negative_step_size, static_cast<int32_t>(a->rounding_seed >= 0),
      rounding_keys(a->rounding_seed, 0), rounding_keys(a->rounding_seed, 1), rounding_keys(a->rounding_seed, 2),
      a->rounding_offset);
}

int32_t adagrad(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_adagrad_args*>(arguments);
  const int32_t refused = refusal(a, exec, a->state_dtype);
  if (refused != DS_OK) return refused;
  return launch<kernels::adagrad>(exec, groups_for(a->numel), a->param_dtype, a->grad_dtype, a->state_dtype,
                                  a->copy_dtype, a->numel, a->param, a->grad, a->state_sum, a->copy_out, a->grad_factor,
                                  a->weight_decay, a->eps, a->negative_step_size,
                                  static_cast<int32_t>(a->rounding_seed >= 0), rounding_keys(a->rounding_seed, 0),
                                  rounding_keys(a->rounding_seed, 1), a->rounding_offset);
}

int32_t lion(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_lion_args*>(arguments);
  const int32_t refused = refusal(a, exec, a->state_dtype);
  if (refused != DS_OK) return refused;
  return launch<kernels::lion>(exec, groups_for(a->numel), a->param_dtype, a->grad_dtype, a->state_dtype, a->copy_dtype,
                               a->numel, a->param, a->grad, a->exp_avg, a->copy_out, a->grad_factor, a->decay, a->beta1,
                               a->weight1, a->beta2, a->weight2, a->negative_lr,
                               static_cast<int32_t>(a->rounding_seed >= 0), rounding_keys(a->rounding_seed, 0),
                               rounding_keys(a->rounding_seed, 1), a->rounding_offset);
}

int32_t sgd(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_sgd_args*>(arguments);
  const int32_t refused = refusal(a, exec, a->momentum_buffer != nullptr ? a->state_dtype : int32_t{DS_F32});
  if (refused != DS_OK) return refused;
  return launch<kernels::sgd>(exec, groups_for(a->numel), a->param_dtype, a->grad_dtype, a->state_dtype, a->copy_dtype,
                              a->nesterov, a->is_first, a->numel, a->param, a->grad, a->momentum_buffer, a->copy_out,
                              a->grad_factor, a->weight_decay, a->momentum, a->grad_weight, a->negative_lr,
                              static_cast<int32_t>(a->rounding_seed >= 0), rounding_keys(a->rounding_seed, 0),
                              rounding_keys(a->rounding_seed, 1), a->rounding_offset);
}

namespace {

constexpr int64_t kPerGroup = 16384;  // csrc/kernels/sums.cl says the same
constexpr int64_t kOneLaunch = kMostGroups * kPerGroup;

}  // namespace

uint64_t sum_of_squares_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  return a->numel <= 0 ? 0 : static_cast<uint64_t>(ceil_div(a->numel, kPerGroup)) * sizeof(double);
}

int32_t sum_of_squares(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < sum_of_squares_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  auto* partial = static_cast<double*>(exec->workspace);
  const int64_t bytes = a->dtype == DS_F32 ? 4 : 2;
  for (int64_t first = 0; first < a->numel; first += kOneLaunch) {
    const int64_t left = a->numel - first;
    const int64_t count = left < kOneLaunch ? left : kOneLaunch;
    const int32_t status =
        launch<kernels::squares>(exec, ceil_div(count, kPerGroup), a->dtype, count,
                                 static_cast<const char*>(a->x) + first * bytes, partial + first / kPerGroup);
    if (status != DS_OK) return status;
  }
  return launch<kernels::add_squares>(exec, 1, ceil_div(a->numel, kPerGroup), partial, a->out);
}

}  // namespace dsk
