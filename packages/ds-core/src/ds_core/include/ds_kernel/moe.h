/* Argument structs of the ops: mixtures of experts. Included by ds_kernel.h, which states the rules. */
#ifndef DS_KERNEL_MOE_H
#define DS_KERNEL_MOE_H

#include <stdint.h>

#define DS_MOST_EXPERTS 8192
#define DS_MOST_EXPERT_GROUPS 64

enum ds_gate_score { DS_GATE_SOFTMAX = 1, DS_GATE_SIGMOID = 2 };

enum ds_gate_group_score {
  DS_GATE_GROUP_MAX = 1, /* the best expert of a group */
  DS_GATE_GROUP_TOP2 = 2 /* the sum of its two best */
};

/* top_k_gate: scores of experts, and the k best of each token in falling order, equal ones by the lowest number.
 * Experts are compared by score + bias; without bias by logit (by score where groups count as sums). NaN, and what is
 * below every finite number, count as the lowest finite number. Groups are compared likewise; experts of groups that
 * are not kept are out. Weights are scores of the chosen; with `renormalize` divided by the larger of their sum and the
 * smallest normal number; times `scale`. */
typedef struct ds_top_k_gate_args {
  uint32_t struct_size;
  int32_t dtype; /* of logits */
  int32_t score; /* enum ds_gate_score */
  int32_t renormalize;
  int32_t groups; /* of consecutive experts, a divisor of `experts` */
  int32_t groups_kept;
  int32_t group_score; /* enum ds_gate_group_score */
  float scale;
  int64_t tokens;
  int64_t experts;
  int64_t k;
  const void* logits; /* [tokens, experts] */
  const float* bias;  /* [experts] or NULL */
  float* weights;     /* [tokens, k] */
  int64_t* chosen;    /* [tokens, k] */
  float* scores;      /* [tokens, experts] */
} ds_top_k_gate_args;

/* top_k_gate_backward: gradient of the logits. A sum below the smallest normal number divides as a constant. Chosen
 * experts of a token are different ones from 0 to experts - 1, as top_k_gate gives them; others add nothing. */
typedef struct ds_top_k_gate_backward_args {
  uint32_t struct_size;
  int32_t dtype; /* of dlogits */
  int32_t score;
  int32_t renormalize;
  float scale;
  int32_t reserved;
  int64_t tokens;
  int64_t experts;
  int64_t k;
  const float* scores;
  const int64_t* chosen;
  const float* dweights; /* [tokens, k], or NULL for zeros */
  const float* dscores;  /* [tokens, experts], or NULL for zeros */
  void* dlogits;
} ds_top_k_gate_backward_args;

/* expert_permutation: pairs (token, slot) sorted by expert. Within an expert they keep their order: token by token, or
 * slot by slot with `by_slot`. From place `capacity` of an expert on (if that is not negative) they are dropped. An
 * expert has room for what it kept (`fixed`: for `capacity`), rounded up to `multiple`. An expert of -1 is none. */
typedef struct ds_expert_permutation_args {
  uint32_t struct_size;
  int32_t fixed;
  int32_t by_slot;
  int32_t reserved;
  int64_t tokens;
  int64_t slots;
  int64_t experts;
  int64_t capacity;
  int64_t multiple;
  int64_t size;          /* of pair_of and token_of: at least what any values of `chosen` need */
  const int64_t* chosen; /* [tokens, slots] */
  int64_t* places;       /* [tokens, slots], -1 where there is none */
  int64_t* pair_of;      /* [size] token * slots + slot, -1 where there is none */
  int64_t* token_of;     /* [size] */
  int64_t* counts;       /* [experts] before dropping */
  int64_t* offsets;      /* [experts + 1] */
} ds_expert_permutation_args;

#endif /* DS_KERNEL_MOE_H */
