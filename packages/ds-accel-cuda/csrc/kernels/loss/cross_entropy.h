// The pieces of the cross-entropy kernels: targets, sums of exponentials in one pass, losses and gradients.
#pragma once

#include "exponential.h"
#include "gpu/elementary.h"
#include "row.h"

namespace dsk {

struct LossOptions {
  float smoothing;
  float z;
  int64_t columns;
  int64_t ignore_index;
};

template <typename Arguments>
LossOptions loss_options(const Arguments& a) {
  return {a.label_smoothing, a.z_loss, a.columns, a.ignore_index};
}

enum class Target { kColumn, kIgnored, kBad };

DSK_DEVICE Target target_kind(const LossOptions& o, int64_t target) {
  if (target == o.ignore_index) return Target::kIgnored;
  return static_cast<uint64_t>(target) < static_cast<uint64_t>(o.columns) ? Target::kColumn : Target::kBad;
}

// What exponentials are relative to. Infinities stand for themselves then: exp(inf) is the sum, and nothing is NaN but
// what comes from a NaN, which the largest value leaves out and every sum takes in.
DSK_DEVICE float finite_reference(float largest) { return fabsf(largest) == INFINITY ? 0.0f : largest; }

// The largest value so far, and the sum of exponentials relative to it, scaled down when a larger value comes.
// Source: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
struct LogSum {
  float largest = -INFINITY;
  float sum = 0.0f;
  float total = 0.0f;  // of the values

  DSK_DEVICE void rescale(float next) {
    if (largest != -INFINITY) sum *= exp_fused(finite_reference(largest) - finite_reference(next));
    largest = next;
  }

  template <typename T, int n>
  DSK_DEVICE void add(const RowPack<T> (&packs)[n], int64_t column, int64_t step, int64_t columns) {
    float peak = largest;
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const int valid = valid_elements<T>(column + k * step, columns);
#pragma unroll
      for (int i = 0; i < RowPack<T>::kSize; ++i) {
        const float value = packs[k].value(i);
        total += value;  // 0 behind the end
        peak = i < valid ? fmaxf(peak, value) : peak;
      }
    }
    if (peak > largest) rescale(peak);
    const float reference = finite_reference(largest);
#pragma unroll
    for (int k = 0; k < n; ++k) {
      const int valid = valid_elements<T>(column + k * step, columns);
#pragma unroll
      for (int i = 0; i < RowPack<T>::kSize; ++i) {
        const float term = exp_fused(packs[k].value(i) - reference);
        sum += i < valid ? term : 0.0f;
      }
    }
  }

  // Over the threads of the group.
  template <typename Group>
  DSK_DEVICE void fold() {
    rescale(Group::fold(largest, LargestNumber{}));
    float sums[2] = {sum, total};
    Group::fold(sums, Add{});
    sum = sums[0];
    total = sums[1];
  }
};

struct RowLoss {
  float loss;
  float lse;
};

// In float64: for one thread of a row.
DSK_DEVICE RowLoss row_loss(const LossOptions& o, const LogSum& s, float picked) {
  const double lse = static_cast<double>(finite_reference(s.largest)) + log_of(static_cast<double>(s.sum));
  double loss = lse - (1.0 - static_cast<double>(o.smoothing)) * static_cast<double>(picked);
  if (o.smoothing != 0.0f) {
    loss -= static_cast<double>(o.smoothing) * (static_cast<double>(s.total) / static_cast<double>(o.columns));
  }
  if (o.z != 0.0f) loss += static_cast<double>(o.z) * lse * lse;
  return {static_cast<float>(loss), static_cast<float>(lse)};
}

// The parts of a row's gradient: exp(logit - lse) * slope - even, less `hit` at the target.
struct RowSlope {
  float lse;
  float slope;
  float even;
  float hit;
  int64_t target;
  bool ignored;
};

DSK_DEVICE RowSlope row_slope(const LossOptions& o, int64_t target, float lse, float dloss) {
  return {lse,
          dloss * (1.0f + 2.0f * o.z * lse),
          dloss * (o.smoothing / static_cast<float>(o.columns)),
          dloss * (1.0f - o.smoothing),
          target,
          target == o.ignore_index};
}

template <typename T>
DSK_DEVICE RowPack<T> gradient_pack(const RowSlope& s, int64_t column, const RowPack<T>& logits) {
  RowPack<T> pack;
#pragma unroll
  for (int i = 0; i < RowPack<T>::kSize; ++i) {
    float gradient = exp_fused(logits.value(i) - s.lse) * s.slope - s.even;
    if (column + i == s.target) gradient -= s.hit;
    pack.set_value(i, s.ignored ? 0.0f : gradient);
  }
  return pack;
}

}  // namespace dsk
