/* Argument structs of the ops: quantization. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_QUANTIZE_H
#define DS_KERNEL_QUANTIZE_H

#include <stdint.h>

/* quantize_int8: groups of `group_size` consecutive elements (the last may be shorter), symmetric. */
typedef struct ds_quantize_int8_args {
  uint32_t struct_size;
  int32_t dtype; /* of x */
  int64_t numel;
  int64_t group_size;
  const void* x;
  int8_t* q;
  float* scales; /* [ceil(numel / group_size)] */
} ds_quantize_int8_args;

/* dequantize_int8: x = float32(q) * scale of its group, rounded to `dtype`. */
typedef struct ds_dequantize_int8_args {
  uint32_t struct_size;
  int32_t dtype; /* of x */
  int64_t numel;
  int64_t group_size;
  const int8_t* q;
  const float* scales;
  void* x;
} ds_dequantize_int8_args;

#endif /* DS_KERNEL_QUANTIZE_H */
