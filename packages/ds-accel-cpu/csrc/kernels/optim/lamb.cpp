// lamb_moments_ and lamb_apply_: the two passes of a LAMB step; between them the caller makes trust ratios of the
// norms.
#include "lanes.h"
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

// Segments are cut into units from their starts, so that sums do not depend on tasks. Source of the cut: ds_kernel.h.
constexpr int64_t kSumUnit = 64 * kBlock;

struct Span {
  int64_t segment;
  int64_t first;
  int64_t stop;
};

// All units of all segments, numbered in order.
class Units {
 public:
  // `starts` has room for count + 1 numbers.
  Units(const int64_t* bounds, int64_t count, int64_t* starts) : bounds_(bounds), count_(count), starts_(starts) {
    starts_[0] = 0;
    for (int64_t i = 0; i < count; ++i) starts_[i + 1] = starts_[i] + ceil_div(length(i), kSumUnit);
  }
  int64_t total() const { return starts_[count_]; }
  int64_t begin(int64_t segment) const { return starts_[segment]; }
  Span span(int64_t unit) const {
    int64_t low = 0;
    int64_t high = count_ - 1;
    while (low < high) {  // the last segment that begins at or before the unit and has one
      const int64_t middle = (low + high + 1) / 2;
      if (starts_[middle] <= unit) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    const int64_t first = bounds_[2 * low] + (unit - starts_[low]) * kSumUnit;
    return {low, first, min64(first + kSumUnit, bounds_[2 * low + 1])};
  }

 private:
  int64_t length(int64_t i) const { return bounds_[2 * i + 1] - bounds_[2 * i]; }

  const int64_t* bounds_;
  int64_t count_;
  int64_t* starts_;
};

uint64_t starts_bytes(int64_t count) { return (static_cast<uint64_t>(count) + 1) * sizeof(int64_t); }

template <typename Args>
bool bounds_fit(const Args& a) {
  if (a.segment_count < 0) return false;
  for (int64_t i = 0; i < a.segment_count; ++i) {
    const int64_t start = a.bounds[2 * i];
    const int64_t stop = a.bounds[2 * i + 1];
    if (start < 0 || stop < start || stop > a.numel) return false;
  }
  return true;
}

struct Direction {
  float correction1;
  float correction2;
  float eps;
  float weight_decay;
};

template <bool kInside>
void directions(const float* __restrict p, const float* __restrict m, const float* __restrict v, float* __restrict u,
                int64_t n, const Direction d) {
  for (int64_t i = 0; i < n; ++i) {
    const float square = v[i] / d.correction2;
    const float denominator = kInside ? __builtin_sqrtf(square + d.eps) : __builtin_sqrtf(square) + d.eps;
    u[i] = fma(p[i], d.weight_decay, (m[i] / d.correction1) / denominator);
  }
}

using Directions = void (*)(const float*, const float*, const float*, float*, int64_t, Direction);

void update_moments(const float* __restrict grad, float* __restrict exp_avg, float* __restrict exp_avg_sq, int64_t n,
                    const ds_lamb_moments_args& a, float factor) {
  const float beta1 = a.beta1;
  const float weight1 = a.weight1;
  const float beta2 = a.beta2;
  const float weight2 = a.weight2;
  for (int64_t i = 0; i < n; ++i) {
    const float g = grad[i] * factor;
    exp_avg[i] = fma(g, weight1, exp_avg[i] * beta1);
    exp_avg_sq[i] = fma(weight2 * g, g, exp_avg_sq[i] * beta2);
  }
}

struct MomentsJob {
  const ds_lamb_moments_args& a;
  Direction direction;
  Directions directions;
  float factor;
  Rounding exp_avg_rounding;
  Rounding exp_avg_sq_rounding;
};

// Writes a low-precision state back and reads it as stored, for the direction is made of what the next pass will see.
void settle(int32_t dtype, void* base, int64_t first, int64_t n, float* block, const Rounding& rounding) {
  if (dtype == DS_F32) return;
  store_block(dtype, block, at(base, first, 2), n, rounding, first);
  load_block(dtype, at(base, first, 2), block, n);
}

void moments_unit(const MomentsJob& job, const Span& span, double* sums) {
  alignas(64) float param_buffer[kBlock];
  alignas(64) float grad_buffer[kBlock];
  alignas(64) float exp_avg_buffer[kBlock];
  alignas(64) float exp_avg_sq_buffer[kBlock];
  alignas(64) float direction[kBlock];
  const ds_lamb_moments_args& a = job.a;
  DoubleLanes params;
  DoubleLanes moves;
  for (int64_t first = span.first; first < span.stop; first += kBlock) {
    const int64_t n = min64(kBlock, span.stop - first);
    const float* p = stage(a.param_dtype, const_cast<void*>(a.param), first, n, param_buffer);
    const float* g = stage(a.grad_dtype, const_cast<void*>(a.grad), first, n, grad_buffer);
    float* m = stage(a.state_dtype, a.exp_avg, first, n, exp_avg_buffer);
    float* v = stage(a.state_dtype, a.exp_avg_sq, first, n, exp_avg_sq_buffer);
    update_moments(g, m, v, n, a, job.factor);
    settle(a.state_dtype, a.exp_avg, first, n, m, job.exp_avg_rounding);
    settle(a.state_dtype, a.exp_avg_sq, first, n, v, job.exp_avg_sq_rounding);
    job.directions(p, m, v, direction, n, job.direction);
    params.add(n, [p](int64_t i) { return static_cast<double>(p[i]) * static_cast<double>(p[i]); });
    moves.add(
        n, [&direction](int64_t i) { return static_cast<double>(direction[i]) * static_cast<double>(direction[i]); });
  }
  sums[0] = params.fold();
  sums[1] = moves.fold();
}

template <typename Args>
uint64_t unit_count(const Args& a) {
  int64_t units = 0;
  for (int64_t i = 0; i < a.segment_count; ++i) {
    units += ceil_div(max64(a.bounds[2 * i + 1] - a.bounds[2 * i], 0), kSumUnit);
  }
  return static_cast<uint64_t>(units);
}

template <typename Body>
void for_units(const ds_exec* exec, const Units& units, int64_t numel, const Body& body) {
  const int64_t per_task = units_per_task(exec, numel, kSumUnit);
  parallel_for(exec, ceil_div(units.total(), per_task), [&](int64_t task) {
    const int64_t end = min64(units.total(), (task + 1) * per_task);
    for (int64_t unit = task * per_task; unit < end; ++unit) body(unit, units.span(unit));
  });
}

}  // namespace

uint64_t lamb_moments_workspace(const void* arguments) {
  const ds_lamb_moments_args* a = static_cast<const ds_lamb_moments_args*>(arguments);
  return starts_bytes(a->segment_count) + unit_count(*a) * 2 * sizeof(double);
}

int32_t lamb_moments(const void* arguments, const ds_exec* exec) {
  const ds_lamb_moments_args* a = static_cast<const ds_lamb_moments_args*>(arguments);
  if (!is_valid(a, exec) || !bounds_fit(*a)) return DS_BAD_ARGUMENT;
  if (!is_float(a->param_dtype) || !is_float(a->grad_dtype) || !is_float(a->state_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < lamb_moments_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  int64_t* starts = static_cast<int64_t*>(exec->workspace);
  double* partial = reinterpret_cast<double*>(starts + a->segment_count + 1);
  const Units units(a->bounds, a->segment_count, starts);
  const MomentsJob job = {*a,
                          {a->correction1, a->correction2, a->eps, a->weight_decay},
                          a->eps_inside_sqrt ? directions<true> : directions<false>,
                          factor_of(a->grad_factor),
                          make_rounding(a->rounding_seed, a->rounding_offset, 1),
                          make_rounding(a->rounding_seed, a->rounding_offset, 2)};
  for_units(exec, units, a->numel,
            [&](int64_t unit, const Span& span) { moments_unit(job, span, partial + 2 * unit); });
  for (int64_t segment = 0; segment < a->segment_count; ++segment) {
    double total[2] = {0.0, 0.0};
    for (int64_t unit = units.begin(segment); unit < units.begin(segment + 1); ++unit) {
      total[0] += partial[2 * unit];
      total[1] += partial[2 * unit + 1];
    }
    a->sums[2 * segment] = total[0];
    a->sums[2 * segment + 1] = total[1];
  }
  return DS_OK;
}

namespace {

void move(float* __restrict param, const float* __restrict direction, int64_t n, float size) {
  for (int64_t i = 0; i < n; ++i) param[i] = fma(direction[i], size, param[i]);
}

}  // namespace

uint64_t lamb_apply_workspace(const void* arguments) {
  return starts_bytes(static_cast<const ds_lamb_apply_args*>(arguments)->segment_count);
}

int32_t lamb_apply(const void* arguments, const ds_exec* exec) {
  const ds_lamb_apply_args* a = static_cast<const ds_lamb_apply_args*>(arguments);
  if (!is_valid(a, exec) || !bounds_fit(*a)) return DS_BAD_ARGUMENT;
  if (exec->workspace_bytes < lamb_apply_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  Pass<0> pass = {};
  pass.numel = a->numel;
  pass.param_dtype = a->param_dtype;
  pass.copy_dtype = a->copy_dtype;
  pass.param = a->param;
  pass.copy_out = a->copy_out;
  pass.param_rounding = make_rounding(a->rounding_seed, a->rounding_offset, 0);
  if (!pass.dtypes_served() || !is_float(a->state_dtype)) return DS_UNSUPPORTED_DTYPE;
  const Units units(a->bounds, a->segment_count, static_cast<int64_t*>(exec->workspace));
  const Direction direction = {a->correction1, a->correction2, a->eps, a->weight_decay};
  const Directions chosen = a->eps_inside_sqrt ? directions<true> : directions<false>;
  for_units(exec, units, a->numel, [&](int64_t, const Span& span) {
    const float size = a->negative_lr * a->ratios[span.segment];
    for (int64_t first = span.first; first < span.stop; first += kBlock) {
      const auto update = [&](float* p, const float*, float* const*, int64_t n) {
        alignas(64) float exp_avg_buffer[kBlock];
        alignas(64) float exp_avg_sq_buffer[kBlock];
        alignas(64) float moves[kBlock];
        const float* m = stage(a->state_dtype, const_cast<void*>(a->exp_avg), first, n, exp_avg_buffer);
        const float* v = stage(a->state_dtype, const_cast<void*>(a->exp_avg_sq), first, n, exp_avg_sq_buffer);
        chosen(p, m, v, moves, n, direction);
        move(p, moves, n, size);
      };
      run_block(pass, update, first, min64(kBlock, span.stop - first));
    }
  });
  return DS_OK;
}

}  // namespace dsk
