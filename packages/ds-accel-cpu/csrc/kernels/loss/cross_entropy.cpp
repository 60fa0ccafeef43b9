// cross_entropy_forward, cross_entropy_backward and cross_entropy_: rows of logits against their classes.
//
// The forward reads the logits once: the largest value so far and the sum of exponentials relative to it are kept, and
// the sum is scaled down when a larger value comes.
// Source: M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
#include "elementary.h"
#include "lanes.h"
#include "loss/rows.h"
#include "row_split.h"
#include "row_view.h"

namespace dsk {
namespace {

struct Options {
  int32_t dtype;
  float smoothing;
  float z;
  int64_t columns;
};

struct RowLoss {
  float loss;
  float lse;
};

float largest_of(const float* x, int64_t n) {
  constexpr int kLanes = 32;
  alignas(64) float lanes[kLanes];
  for (int j = 0; j < kLanes; ++j) lanes[j] = x[0];
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] = (x[i + j] > lanes[j]) | (x[i + j] != x[i + j]) ? x[i + j] : lanes[j];
  }
  for (; i < n; ++i) lanes[0] = (x[i] > lanes[0]) | (x[i] != x[i]) ? x[i] : lanes[0];
  for (int j = 1; j < kLanes; ++j) lanes[0] = (lanes[j] > lanes[0]) | (lanes[j] != lanes[j]) ? lanes[j] : lanes[0];
  return lanes[0];
}

RowLoss row_loss(const Options& o, const void* logits, int64_t target) {
  alignas(64) float buffer[kBlock];
  float largest = -__builtin_inff();
  double sum = 0.0;    // of exp(value - largest)
  double total = 0.0;  // of the values
  for_blocks(o.columns, [&](int64_t column, int64_t n) {
    const float* values = read_block(o.dtype, logits, column, n, buffer);
    const float peak = largest_of(values, n);
    if (o.smoothing != 0.0f) {
      FloatLanes lanes;
      lanes.add(n, [values](int64_t i) { return values[i]; });
      total += static_cast<double>(lanes.fold());
    }
    if (peak == -__builtin_inff()) return;
    if (!(peak <= largest)) {
      sum *= static_cast<double>(exp_of(largest - peak));
      largest = peak;
    }
    FloatLanes lanes;
    const float reference = largest;
    lanes.add(n, [values, reference](int64_t i) { return exp_of(values[i] - reference); });
    sum += static_cast<double>(lanes.fold());
  });
  const double lse = static_cast<double>(largest) + log_of(sum);
  double loss = lse - (1.0 - static_cast<double>(o.smoothing)) * static_cast<double>(float_at(o.dtype, logits, target));
  if (o.smoothing != 0.0f) loss -= static_cast<double>(o.smoothing) * (total / static_cast<double>(o.columns));
  if (o.z != 0.0f) loss += static_cast<double>(o.z) * lse * lse;
  return {static_cast<float>(loss), static_cast<float>(lse)};
}

void row_gradient(const Options& o, float dloss, const void* logits, int64_t target, float lse, void* dlogits) {
  alignas(64) float buffer[kBlock];
  alignas(64) float gradient[kBlock];
  const int64_t bytes = element_bytes(o.dtype);
  const float slope = dloss * (1.0f + 2.0f * o.z * lse);
  const float even = dloss * (o.smoothing / static_cast<float>(o.columns));
  for_blocks(o.columns, [&](int64_t column, int64_t n) {
    const float* __restrict values = read_block(o.dtype, logits, column, n, buffer);
    for (int64_t i = 0; i < n; ++i) gradient[i] = exp_of(values[i] - lse) * slope - even;
    if (target >= column && target < column + n) gradient[target - column] -= dloss * (1.0f - o.smoothing);
    store_block(o.dtype, gradient, at(dlogits, column, bytes), n);
  });
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const bool good = all_rows_exist(a->target, a->rows, a->columns, a->ignore_index);
  return good ? DS_OK : DS_INDEX_OUT_OF_RANGE;
}

template <typename Arguments>
Options options(const Arguments& a) {
  return {a.dtype, a.label_smoothing, a.z_loss, a.columns};
}

}  // namespace

int32_t cross_entropy_forward(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_forward_args* a = static_cast<const ds_cross_entropy_forward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  const Options o = options(*a);
  for_rows(exec, a->rows, a->columns, [a, o](int64_t row) {
    const char* logits = at(a->logits, row * a->columns, element_bytes(a->dtype));
    const bool ignored = a->target[row] == a->ignore_index;
    const RowLoss found = ignored ? RowLoss{0.0f, 0.0f} : row_loss(o, logits, a->target[row]);
    a->losses[row] = found.loss;
    a->lse[row] = found.lse;
  });
  return DS_OK;
}

int32_t cross_entropy_backward(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_backward_args* a = static_cast<const ds_cross_entropy_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  const Options o = options(*a);
  const int64_t row_bytes = a->columns * element_bytes(a->dtype);
  for_rows(exec, a->rows, a->columns, [a, o, row_bytes](int64_t row) {
    char* dlogits = at(a->dlogits, row, row_bytes);
    if (a->target[row] == a->ignore_index) {
      std::memset(dlogits, 0, static_cast<size_t>(row_bytes));
    } else {
      row_gradient(o, a->dlosses[row], at(a->logits, row, row_bytes), a->target[row], a->lse[row], dlogits);
    }
  });
  return DS_OK;
}

int32_t cross_entropy_in_place(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_args* a = static_cast<const ds_cross_entropy_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  const Options o = options(*a);
  const int64_t row_bytes = a->columns * element_bytes(a->dtype);
  for_rows(exec, a->rows, a->columns, [a, o, row_bytes](int64_t row) {
    char* logits = at(a->logits, row, row_bytes);
    if (a->target[row] == a->ignore_index) {
      a->losses[row] = 0.0f;
      std::memset(logits, 0, static_cast<size_t>(row_bytes));
      return;
    }
    const RowLoss found = row_loss(o, logits, a->target[row]);
    a->losses[row] = found.loss;
    row_gradient(o, a->factor, logits, a->target[row], found.lse, logits);
  });
  return DS_OK;
}

}  // namespace dsk
