/* Argument structs of the ops: products with quantized weights. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_MATMUL_H
#define DS_KERNEL_MATMUL_H

#include <stdint.h>

/* linear_weight_only and linear_w8a8: y[m, n] = sum over k of x[m, k] * (w[n, k] - zero) * scale, + bias[n].
 *
 * Packed weights are the same for every library. `blocks` = ceil(outputs / 16) blocks of 16 outputs follow each other;
 * in a block, words of 32 bits for outputs 0 to 15 follow each other, then those of the next inputs. Inputs are filled
 * up to a multiple of 64. Integers are stored as w + 128 and w + 8, floats as their codes. linear_w8a8 takes integers
 * only.
 *
 * 8 bits: a word holds inputs 4i to 4i + 3, lowest byte first.
 *
 * 4 bits: a word holds inputs 8i to 8i + 7: byte j has input 8i + j in its low and 8i + 4 + j in its high nibble.
 *
 * 6 bits, floats only: three words of an output hold inputs 16i to 16i + 15. Word h (0 or 1) has the low 4 bits of
 * inputs 16i + 8h to 16i + 8h + 7, as words of 4 bits have them. Word 2 has the upper 2 bits of input 16i + 8h + 4n + j
 * in its bits 8j + 4n + 2h and the next. So ((word_h >> 4n) & 0x0f0f0f0f) | ((word_2 >> (4n + 2h)) & 0x03030303) << 4
 * is four codes, a byte each. */
typedef struct ds_linear_args {
  uint32_t struct_size;
  int32_t dtype;  /* of x and y */
  int32_t bits;   /* of a code: 8 or 4, and 6 for floats */
  int32_t format; /* 0: integers; else the enum ds_format of floats. 0 if left out */
  int64_t rows;
  int64_t inputs;
  int64_t outputs;
  int64_t group_size; /* inputs that share a scale: a multiple of 8, or at least `inputs` */
  const void* x;
  const uint8_t* codes;
  const float* scales; /* [ceil(inputs / group_size), blocks * 16] */
  const int8_t* zeros; /* as scales, or NULL for 0; NULL for floats */
  const float* bias;   /* [outputs] or NULL */
  void* y;
} ds_linear_args;

#endif /* DS_KERNEL_MATMUL_H */
