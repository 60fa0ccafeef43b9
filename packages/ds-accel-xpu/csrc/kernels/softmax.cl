// softmax_forward and softmax_backward: a work-group per row, in float32, scaled, masked and cut to what it may see.
#include "common.h"
#include "elementary.h"

// A scaled and masked value of a row.
static inline float seen_value(int dtype, Source x, long i, float scale, int mask_dtype, Source mask, long m) {
  const float value = load(dtype, x, i) * scale;
  return mask != 0 ? value + load(mask_dtype, mask, m) : value;
}

kernel void softmax_forward(int dtype, int mask_dtype, int causal, long rows, long middle, long queries, long keys,
                            long mask_outer_stride, long mask_middle_stride, long mask_query_stride,
                            const global void* x, const global void* mask, const global long* lengths, global void* y,
                            float scale) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long query = row % queries;
    const long outer = row / queries / middle;
    const long m = outer * mask_outer_stride + row / queries % middle * mask_middle_stride + query * mask_query_stride;
    long seen = lengths != 0 ? clamp(lengths[outer], 0l, keys) : keys;
    if (causal != 0) seen = min(seen, max(0l, query + 1 + keys - queries));
    const long first = row * keys;
    float largest = -INFINITY;
    for (long j = (long)get_local_id(0); j < seen; j += kGroup) {
      largest = larger(largest, seen_value(dtype, x, first + j, scale, mask_dtype, mask, m + j));
    }
    largest = group_max(largest, scratch);
    if (largest == -INFINITY) seen = 0;  // nothing is seen
    float sum = 0.0f;
    for (long j = (long)get_local_id(0); j < seen; j += kGroup) {
      sum += exp_of(seen_value(dtype, x, first + j, scale, mask_dtype, mask, m + j) - largest);
    }
    const float inverse = divide(1.0f, group_sum(sum, scratch));
    for (long j = (long)get_local_id(0); j < keys; j += kGroup) {
      float value = 0.0f;
      if (j < seen) value = exp_of(seen_value(dtype, x, first + j, scale, mask_dtype, mask, m + j) - largest) * inverse;
      store(dtype, y, first + j, value);
    }
  }
}

kernel void softmax_backward(int dtype, long rows, long columns, const global void* dy, const global void* y,
                             global void* dx, float scale) {
  local float scratch[kGroup];
  for (long row = (long)get_group_id(0); row < rows; row += (long)get_num_groups(0)) {
    const long end = (row + 1) * columns;
    const long begin = row * columns + (long)get_local_id(0);
    float along = 0.0f;
    for (long i = begin; i < end; i += kGroup) along += load(dtype, dy, i) * load(dtype, y, i);
    along = group_sum(along, scratch);
    for (long i = begin; i < end; i += kGroup) {
      store(dtype, dx, i, (load(dtype, dy, i) - along) * load(dtype, y, i) * scale);
    }
  }
}
