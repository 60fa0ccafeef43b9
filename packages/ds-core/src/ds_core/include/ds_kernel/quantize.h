/* Argument structs of the ops: quantization. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_QUANTIZE_H
#define DS_KERNEL_QUANTIZE_H

#include <stdint.h>

/* What codes mean. 4-bit codes are packed two a byte, the first in the low nibble; 6-bit codes four in three bytes,
 * code j in bits 6j to 6j + 5 of the little-endian 24-bit number; unused bits of the last unit are 0. */
enum ds_format {
  DS_FORMAT_INT8 = 1,   /* two's complement */
  DS_FORMAT_INT4 = 2,   /* value + 8 */
  DS_FORMAT_E4M3FN = 3, /* floats as sign, exponent, mantissa; fn: no infinity, one NaN */
  DS_FORMAT_E5M2 = 4,
  DS_FORMAT_E3M2 = 5,
  DS_FORMAT_E2M3 = 6,
  DS_FORMAT_E2M1 = 7
};

/* How the scale of a group follows from its elements. */
enum ds_scaling {
  DS_SCALING_SYMMETRIC = 1,   /* float32 scales */
  DS_SCALING_ASYMMETRIC = 2,  /* integers: float32 scales and int8 zero points */
  DS_SCALING_POWER_OF_TWO = 3 /* floats: E8M0 scales, a byte each: 2 to the power of code - 127, 255 is NaN */
};

/* quantize: groups of `group_size` consecutive elements (the last may be shorter) as codes of `format`. `group_size` is
 * a multiple of the codes in a unit of packing. */
typedef struct ds_quantize_args {
  uint32_t struct_size;
  int32_t dtype; /* of x */
  int32_t format;
  int32_t scaling;
  int64_t numel;
  int64_t group_size;
  int64_t rounding_seed; /* negative: to nearest even */
  int64_t rounding_offset;
  const void* x;
  void* q;
  void* scales;  /* [ceil(numel / group_size)] */
  int8_t* zeros; /* of the same length for DS_SCALING_ASYMMETRIC, else not touched */
} ds_quantize_args;

/* dequantize: x = (value of q - zero) * scale of its group in float32, rounded to `dtype`. */
typedef struct ds_dequantize_args {
  uint32_t struct_size;
  int32_t dtype; /* of x */
  int32_t format;
  int32_t scaling;
  int64_t numel;
  int64_t group_size;
  const void* q;
  const void* scales;
  const int8_t* zeros; /* DS_SCALING_ASYMMETRIC only */
  void* x;
} ds_dequantize_args;

/* quantized_reduce: y[i] = (0 + x[0][i] + x[1][i] + ...), divided by `ranks` if `average`, in float32 in the order of
 * ranks, rounded to `dtype`; x[r] is the dequantized chunk of rank r. */
typedef struct ds_quantized_reduce_args {
  uint32_t struct_size;
  int32_t dtype; /* of y */
  int32_t format;
  int32_t scaling;
  int32_t average; /* 1: divide by ranks */
  int32_t reserved;
  int64_t ranks;
  int64_t numel;       /* of a chunk */
  int64_t group_size;  /* groups do not go from a chunk to the next */
  const void* q;       /* [ranks, packed chunk]: each chunk begins with a unit of its own */
  const void* scales;  /* [ranks, ceil(numel / group_size)] */
  const int8_t* zeros; /* as scales; DS_SCALING_ASYMMETRIC only */
  void* y;             /* [numel] */
} ds_quantized_reduce_args;

/* quantized_reduce_quantize: the float32 result of quantized_reduce, as `quantize` makes codes of it. `out_group_size`
 * is a multiple of the codes in a unit of packing of both formats. */
typedef struct ds_quantized_reduce_quantize_args {
  uint32_t struct_size;
  int32_t format;
  int32_t scaling;
  int32_t average;
  int32_t out_format;
  int32_t out_scaling;
  int64_t ranks;
  int64_t numel;
  int64_t group_size;
  int64_t out_group_size;
  int64_t rounding_seed; /* negative: to nearest even */
  int64_t rounding_offset;
  const void* q;
  const void* scales;
  const int8_t* zeros;
  void* out_q;
  void* out_scales;
  int8_t* out_zeros; /* for DS_SCALING_ASYMMETRIC, else not touched */
} ds_quantized_reduce_quantize_args;

/* swizzle_quantize: x is [nodes, ranks_per_node, chunk]; chunk (n, j), quantized on its own, is row j * nodes + n of q,
 * scales and zeros. Element i of x is i positions from `rounding_offset`. */
typedef struct ds_swizzle_quantize_args {
  uint32_t struct_size;
  int32_t dtype; /* of x */
  int32_t format;
  int32_t scaling;
  int64_t nodes;
  int64_t ranks_per_node;
  int64_t chunk; /* elements */
  int64_t group_size;
  int64_t rounding_seed; /* negative: to nearest even */
  int64_t rounding_offset;
  const void* x;
  void* q;       /* [ranks, packed chunk] */
  void* scales;  /* [ranks, ceil(chunk / group_size)] */
  int8_t* zeros; /* as scales for DS_SCALING_ASYMMETRIC, else not touched */
} ds_swizzle_quantize_args;

#endif /* DS_KERNEL_QUANTIZE_H */
