/* Argument structs of the ops: tokens of many sequences without padding. Included by ds_kernel.h, which states the
 * rules. An index that names no row: DS_INDEX_OUT_OF_RANGE. */
#ifndef DS_KERNEL_RAGGED_H
#define DS_KERNEL_RAGGED_H

#include <stdint.h>

/* ragged_embed: y[t] = weight[token[t]] + position_weight[position[t]] + type_weight[type[t]], added in float32 in this
 * order and rounded once; a NULL index leaves its table out. */
typedef struct ds_ragged_embed_args {
  uint32_t struct_size;
  int32_t dtype; /* of the tables and y */
  int64_t tokens;
  int64_t columns;
  int64_t vocabulary; /* rows of weight */
  int64_t positions;  /* rows of position_weight */
  int64_t types;      /* rows of type_weight */
  const void* weight;
  const int64_t* token;
  const void* position_weight;
  const int64_t* position; /* [tokens] or NULL */
  const void* type_weight;
  const int64_t* type; /* [tokens] or NULL */
  void* y;             /* [tokens, columns] */
} ds_ragged_embed_args;

#endif /* DS_KERNEL_RAGGED_H */
