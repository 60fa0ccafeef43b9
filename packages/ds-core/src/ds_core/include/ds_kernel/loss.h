/* Argument structs of the ops: losses. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_LOSS_H
#define DS_KERNEL_LOSS_H

#include <stdint.h>

/* Cross-entropy of rows of logits against the numbers of their classes, in float32:
 *   lse = log(sum(exp(logits)));  loss = lse - (1 - e) * logits[target] - e * mean(logits) + z * lse^2
 * with e = label_smoothing and z = z_loss. A row whose target is ignore_index has loss, lse and gradient 0; any other
 * target that is no column: DS_INDEX_OUT_OF_RANGE, and nothing is written. */
typedef struct ds_cross_entropy_forward_args {
  uint32_t struct_size;
  int32_t dtype; /* of logits */
  float label_smoothing;
  float z_loss;
  int64_t rows;
  int64_t columns;
  int64_t ignore_index;
  const void* logits;
  const int64_t* target; /* [rows] */
  float* losses;         /* [rows] */
  float* lse;            /* [rows] */
} ds_cross_entropy_forward_args;

/* cross_entropy_backward: dlogits = dloss * (exp(logits - lse) * (1 + 2 * z * lse) - e / columns - (1 - e) at target).
 */
typedef struct ds_cross_entropy_backward_args {
  uint32_t struct_size;
  int32_t dtype; /* of logits and dlogits */
  float label_smoothing;
  float z_loss;
  int64_t rows;
  int64_t columns;
  int64_t ignore_index;
  const float* dlosses; /* [rows] */
  const void* logits;
  const int64_t* target;
  const float* lse;
  void* dlogits; /* may be logits */
} ds_cross_entropy_backward_args;

/* cross_entropy_: both at once; logits are replaced by the gradient of factor * sum(losses). */
typedef struct ds_cross_entropy_args {
  uint32_t struct_size;
  int32_t dtype;
  float label_smoothing;
  float z_loss;
  float factor;
  int32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t ignore_index;
  void* logits;
  const int64_t* target;
  float* losses;
} ds_cross_entropy_args;

#endif /* DS_KERNEL_LOSS_H */
