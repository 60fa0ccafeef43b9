/* Argument structs of the ops: reductions over ranks. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_REDUCE_H
#define DS_KERNEL_REDUCE_H

#include <stdint.h>

/* How elements of two ranks become one. */
enum ds_reduction {
  DS_SUM = 0,
  DS_AVERAGE = 1, /* floating point only */
  DS_PRODUCT = 2,
  DS_MINIMUM = 3, /* not-a-number wins */
  DS_MAXIMUM = 4, /* not-a-number wins */
  DS_BIT_AND = 5, /* integers and booleans only, as the next two */
  DS_BIT_OR = 6,
  DS_BIT_XOR = 7
};

/* reduce_ranks: out[i] = inputs[0][i] op inputs[1][i] op ..., from the first to the last. float16 and bfloat16 are
 * reduced in float32 and rounded once, to nearest even. Booleans are bytes 0 and 1; their sum is "or", their product
 * "and". Integers wrap around. */
typedef struct ds_reduce_ranks_args {
  uint32_t struct_size;
  int32_t dtype; /* of all tensors */
  int32_t op;    /* enum ds_reduction */
  int32_t count; /* of inputs, at least 1 */
  int64_t numel;
  const void* const* inputs; /* [count] tensors of numel elements */
  void* out;                 /* numel elements; may be one of the inputs */
  void* copy;                /* the result once more, or NULL; none of the inputs. Written past the caches */
  int32_t past_caches;       /* 1: out is written past the caches as well */
  int32_t reserved;
} ds_reduce_ranks_args;

#endif /* DS_KERNEL_REDUCE_H */
