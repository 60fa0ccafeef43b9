// Rotary embeddings, gated activations and their gradients.
#include "common.h"
#include "elementary.h"

// A work-group per token. A pair is turned by one work-item, so y may be x.
kernel void rotary(int dtype, int interleaved, int inverse, long batch, long tokens, long heads, long dim,
                   long half_dim, long table_rows, long x_batch_stride, long x_token_stride, long x_head_stride,
                   long y_batch_stride, long y_token_stride, long y_head_stride, const global void* x,
                   const global float* cosines, const global float* sines, const global long* positions,
                   global void* y) {
  const uint wide = (uint)(dim - half_dim);  // pairs, then elements that are copied
  const float sign = inverse != 0 ? -1.0f : 1.0f;
  for (long at = (long)get_group_id(0); at < batch * tokens; at += (long)get_num_groups(0)) {
    const long position = positions[at];
    const bool known = exists(position, table_rows);
    const long b = at / tokens;
    const long t = at % tokens;
    for (uint k = (uint)get_local_id(0); k < (uint)heads * wide; k += kGroup) {
      const long head = (long)(k / wide);
      const long j = (long)(k % wide);
      const long from = b * x_batch_stride + t * x_token_stride + head * x_head_stride;
      const long to = b * y_batch_stride + t * y_token_stride + head * y_head_stride;
      if (j >= half_dim) {
        if (x != y) store(dtype, y, to + half_dim + j, load(dtype, x, from + half_dim + j));
        continue;
      }
      const long one = interleaved != 0 ? 2 * j : j;
      const long other = interleaved != 0 ? 2 * j + 1 : half_dim + j;
      const float first = load(dtype, x, from + one);
      const float second = load(dtype, x, from + other);
      const float c = known ? cosines[position * half_dim + j] : kBad;
      const float s = known ? sign * sines[position * half_dim + j] : kBad;
      store(dtype, y, to + one, first * c - second * s);
      store(dtype, y, to + other, second * c + first * s);
    }
  }
}

// Value and derivative of an activation at one point; enum ds_activation.
struct Point {
  float value;
  float slope;
};

static inline Point silu(float x) {
  const float s = divide(1.0f, 1.0f + exp_of(-x));
  return {divide(x, 1.0f + exp_of(-x)), s * (1.0f + x * (1.0f - s))};
}

// x * Phi(x), Phi being the normal distribution. Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units", 2016.
static inline Point gelu(float x) {
  const float phi = 0.5f * (1.0f + erf_of(x * 0x1.6a09e6p-1f));
  return {x * phi, phi + x * (exp_of(-0.5f * x * x) * 0x1.988454p-2f)};
}

// The approximation of the same paper: 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))).
static inline Point gelu_tanh(float x) {
  const float slope_at_0 = 0x1.988454p-1f;
  const float t = tanh_of(slope_at_0 * (x + 0.044715f * (x * x * x)));
  const float inner = slope_at_0 * (1.0f + 3.0f * 0.044715f * (x * x));
  return {0.5f * x * (1.0f + t), 0.5f * (1.0f + t) + 0.5f * x * ((1.0f - t * t) * inner)};
}

static inline Point activate(int kind, float x) {
  if (kind == 0) return silu(x);
  if (kind == 1) return gelu(x);
  if (kind == 2) return gelu_tanh(x);
  return {x < 0.0f ? 0.0f : x, x > 0.0f ? 1.0f : 0.0f};  // NaN stays
}

#define kTile (4 * kGroup)

// A work-group per 4 * kGroup elements of a row.
kernel void gated_activation(int dtype, int kind, long rows, long columns, long gate_stride, long up_stride,
                             const global void* gate, const global void* up, global void* y) {
  const long tiles = (columns + kTile - 1) / kTile;
  for (long unit = (long)get_group_id(0); unit < rows * tiles; unit += (long)get_num_groups(0)) {
    const long row = unit / tiles;
    const long end = min(columns, (unit % tiles + 1) * kTile);
    for (long j = unit % tiles * kTile + (long)get_local_id(0); j < end; j += kGroup) {
      const Point point = activate(kind, load(dtype, gate, row * gate_stride + j));
      store(dtype, y, row * columns + j, point.value * load(dtype, up, row * up_stride + j));
    }
  }
}

kernel void gated_activation_backward(int dtype, int kind, long rows, long columns, long gate_stride, long up_stride,
                                      long dgate_stride, long dup_stride, const global void* dy,
                                      const global void* gate, const global void* up, global void* dgate,
                                      global void* dup) {
  const long tiles = (columns + kTile - 1) / kTile;
  for (long unit = (long)get_group_id(0); unit < rows * tiles; unit += (long)get_num_groups(0)) {
    const long row = unit / tiles;
    const long end = min(columns, (unit % tiles + 1) * kTile);
    for (long j = unit % tiles * kTile + (long)get_local_id(0); j < end; j += kGroup) {
      const Point point = activate(kind, load(dtype, gate, row * gate_stride + j));
      const float slope = load(dtype, dy, row * columns + j);
      const float times = load(dtype, up, row * up_stride + j);
      store(dtype, dgate, row * dgate_stride + j, slope * times * point.slope);
      store(dtype, dup, row * dup_stride + j, slope * point.value);
    }
  }
}
