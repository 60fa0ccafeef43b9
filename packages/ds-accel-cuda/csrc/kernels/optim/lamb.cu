// lamb_moments_ and lamb_apply_: the two passes of a LAMB step; between them the caller makes trust ratios of the
// norms.
#include "optim/elements.h"
#include "optim/rows.h"
#include "optim/segments.h"

namespace dsk {
namespace {

constexpr int kTile = 1024;  // elements between two barriers
constexpr int kLanes = 16;   // sums of a unit that run beside each other, as ds_kernel.h says

struct Direction {
  float correction1;
  float correction2;
  float eps;
  float weight_decay;
  bool eps_inside_sqrt;

  DSK_DEVICE float operator()(float p, float m, float v) const {
    const float square = v / correction2;
    const float denominator = eps_inside_sqrt ? sqrtf(square + eps) : sqrtf(square) + eps;
    return fmaf(p, weight_decay, (m / correction1) / denominator);
  }
};

template <typename Args>
Direction direction_of(const Args& a) {
  return {a.correction1, a.correction2, a.eps, a.weight_decay, a.eps_inside_sqrt != 0};
}

struct Moments {
  Floats param;
  Floats grad;
  Floats exp_avg;
  Floats exp_avg_sq;
  const float* grad_factor;
  float beta1;
  float weight1;
  float beta2;
  float weight2;
  Direction direction;
  Rounding exp_avg_rounding;
  Rounding exp_avg_sq_rounding;
};

struct Pair {
  float param;
  float direction;
};

// The direction is made of the states as stored, which is what the next pass will see.
DSK_DEVICE Pair update_moments(const Moments& a, float factor, int64_t i) {
  const float p = load(a.param, i);
  const float g = load(a.grad, i) * factor;
  float m = fmaf(g, a.weight1, load(a.exp_avg, i) * a.beta1);
  float v = fmaf(a.weight2 * g, g, load(a.exp_avg_sq, i) * a.beta2);
  m = store(a.exp_avg, i, m, a.exp_avg_rounding);
  v = store(a.exp_avg_sq, i, v, a.exp_avg_sq_rounding);
  return {p, a.direction(p, m, v)};
}

// Note [Sums of a unit]
// Element j goes to lane j mod 16, one after the other. All threads compute a tile; then 32 of them, sixteen lanes for
// the params and sixteen for the directions, add it while the others go on with the next tile, in the other buffer.
__global__ void __launch_bounds__(kThreads)
    moments_kernel(const Moments a, const Segments segments, int64_t units, double* partial) {
  DSK_SHARED(float, tiles, [2][2][kTile]);
  const float factor = factor_of(a.grad_factor);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Span span = span_of(segments, unit);
    double sum = 0.0;
    int turn = 0;
    for (int64_t first = span.first; first < span.stop; first += kTile, turn ^= 1) {
      const int count = static_cast<int>(min64(kTile, span.stop - first));
      for (int j = thread; j < count; j += kThreads) {
        const Pair pair = update_moments(a, factor, first + j);
        tiles[turn][0][j] = pair.param;
        tiles[turn][1][j] = pair.direction;
      }
      __syncthreads();
      if (thread < 2 * kLanes) {
        const float* const tile = tiles[turn][thread / kLanes];
        for (int j = thread % kLanes; j < count; j += kLanes) {
          const double value = tile[j];
          sum += value * value;
        }
      }
    }
    for (int apart = kLanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(kAllLanes, sum, apart);
    if (thread == 0) partial[2 * unit] = sum;
    if (thread == kLanes) partial[2 * unit + 1] = sum;
    __syncthreads();  // the next unit begins with the first buffer
  }
}

__global__ void __launch_bounds__(64) fold_kernel(const double* partial, const Segments segments, double* sums) {
  DSK_GRID_STRIDE(i, 2 * segments.count) {
    double total = 0.0;
    const int64_t end = segments.starts[i / 2 + 1];
    for (int64_t unit = segments.starts[i / 2]; unit < end; ++unit) total += partial[2 * unit + i % 2];
    sums[i] = total;
  }
}

struct Apply {
  Floats param;
  Floats exp_avg;
  Floats exp_avg_sq;
  Floats copy_out;
  const float* ratios;
  float negative_lr;
  Direction direction;
  Rounding param_rounding;
};

__global__ void __launch_bounds__(kThreads) apply_kernel(const Apply a, const Segments segments, int64_t units) {
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    const Span span = span_of(segments, unit);
    const float size = a.negative_lr * a.ratios[span.segment];
    for (int64_t i = span.first + threadIdx.x; i < span.stop; i += kThreads) {
      float p = load(a.param, i);
      p = fmaf(a.direction(p, load(a.exp_avg, i), load(a.exp_avg_sq, i)), size, p);
      p = store(a.param, i, p, a.param_rounding);
      if (a.copy_out.dtype != DS_NONE) store(a.copy_out, i, p, Rounding{});
    }
  }
}

}  // namespace

uint64_t lamb_moments_workspace(const void* arguments) {
  const ds_lamb_moments_args* a = static_cast<const ds_lamb_moments_args*>(arguments);
  return segments_bytes(a->segment_count) +
         static_cast<uint64_t>(total_units(a->bounds, a->segment_count)) * 2 * sizeof(double);
}

int32_t lamb_moments(const void* arguments, const ds_exec* exec) {
  const ds_lamb_moments_args* a = static_cast<const ds_lamb_moments_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0 || !bounds_fit(*a)) return DS_BAD_ARGUMENT;
  if (!is_float(a->param_dtype) || !is_float(a->grad_dtype) || !is_float(a->state_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < lamb_moments_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  if (a->segment_count == 0) return DS_OK;
  Segments segments;
  int32_t status = place_segments(exec, a->bounds, a->segment_count, &segments);
  if (status != DS_OK) return status;
  const Moments moments = {floats_of(a->param, a->param_dtype),
                           floats_of(a->grad, a->grad_dtype),
                           floats_of(a->exp_avg, a->state_dtype),
                           floats_of(a->exp_avg_sq, a->state_dtype),
                           a->grad_factor,
                           a->beta1,
                           a->weight1,
                           a->beta2,
                           a->weight2,
                           direction_of(*a),
                           make_rounding(a->rounding_seed, a->rounding_offset, 1),
                           make_rounding(a->rounding_seed, a->rounding_offset, 2)};
  double* const partial =
      reinterpret_cast<double*>(static_cast<char*>(exec->workspace) + segments_bytes(a->segment_count));
  const int64_t units = total_units(a->bounds, a->segment_count);
  status = launch(exec, Shape(blocks_for(units, 1), kThreads), moments_kernel, moments, segments, units, partial);
  if (status != DS_OK) return status;
  return launch(exec, Shape(blocks_for(2 * a->segment_count, 64), 64), fold_kernel, partial, segments, a->sums);
}

uint64_t lamb_apply_workspace(const void* arguments) {
  return segments_bytes(static_cast<const ds_lamb_apply_args*>(arguments)->segment_count);
}

int32_t lamb_apply(const void* arguments, const ds_exec* exec) {
  const ds_lamb_apply_args* a = static_cast<const ds_lamb_apply_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0 || !bounds_fit(*a)) return DS_BAD_ARGUMENT;
  if (!is_float(a->param_dtype) || !is_float(a->state_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (a->copy_dtype != DS_NONE && !is_float(a->copy_dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < lamb_apply_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  if (a->segment_count == 0) return DS_OK;
  Segments segments;
  const int32_t status = place_segments(exec, a->bounds, a->segment_count, &segments);
  if (status != DS_OK) return status;
  const Apply apply = {floats_of(a->param, a->param_dtype),
                       floats_of(a->exp_avg, a->state_dtype),
                       floats_of(a->exp_avg_sq, a->state_dtype),
                       floats_of(a->copy_out, a->copy_dtype),
                       a->ratios,
                       a->negative_lr,
                       direction_of(*a),
                       make_rounding(a->rounding_seed, a->rounding_offset, 0)};
  const int64_t units = total_units(a->bounds, a->segment_count);
  return launch(exec, Shape(blocks_for(units, 1), kThreads), apply_kernel, apply, segments, units);
}

}  // namespace dsk
