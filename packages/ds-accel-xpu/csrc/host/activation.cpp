// Rotary embeddings, gated activations, softmax and cross-entropy.
#include "indices.h"
#include "rows.h"

namespace dsk {
namespace {

constexpr int64_t kTile = 4 * kGroup;  // csrc/kernels/activation.cl says the same

template <typename Arguments>
int32_t row_refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

template <typename Arguments>
int32_t gate_refusal(const Arguments* a, const ds_exec* exec) {
  const int32_t refused = row_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return a->kind < DS_SILU || a->kind > DS_RELU ? DS_BAD_ARGUMENT : DS_OK;
}

template <typename Arguments>
int32_t loss_refusal(const Arguments* a, const ds_exec* exec) {
  const int32_t refused = row_refusal(a, exec);
  return refused != DS_OK ? refused : check_indices(exec, a->target, a->rows, a->columns, a->ignore_index);
}

}  // namespace

int32_t rotary(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_rotary_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->batch < 0 || a->tokens < 0 || a->heads < 0 || a->half < 0 || a->dim < 2 * a->half) return DS_BAD_ARGUMENT;
  if (a->heads * a->dim > INT32_MAX) return DS_BAD_ARGUMENT;  // the kernel counts the elements of a token in 32 bits
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const int64_t count = a->batch * a->tokens;
  const int32_t status = check_indices(exec, a->positions, count, a->table_rows, kNoOther);
  if (status != DS_OK) return status;
  return launch<kernels::rotary>(exec, count, a->dtype, a->interleaved, a->inverse, a->batch, a->tokens, a->heads,
                                 a->dim, a->half, a->table_rows, a->x_batch_stride, a->x_token_stride, a->x_head_stride,
                                 a->y_batch_stride, a->y_token_stride, a->y_head_stride, a->x, a->cos, a->sin,
                                 a->positions, a->y);
}

int32_t gated_activation(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_gated_activation_args*>(arguments);
  const int32_t refused = gate_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::gated_activation>(exec, a->rows * ceil_div(a->columns, kTile), a->dtype, a->kind, a->rows,
                                           a->columns, a->gate_stride, a->up_stride, a->gate, a->up, a->y);
}

int32_t gated_activation_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_gated_activation_backward_args*>(arguments);
  const int32_t refused = gate_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::gated_activation_backward>(exec, a->rows * ceil_div(a->columns, kTile), a->dtype, a->kind,
                                                    a->rows, a->columns, a->gate_stride, a->up_stride, a->dgate_stride,
                                                    a->dup_stride, a->dy, a->gate, a->up, a->dgate, a->dup);
}

int32_t softmax_forward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_softmax_forward_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->outer < 0 || a->middle < 0 || a->queries < 0 || a->keys < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype) || (a->mask != nullptr && !is_float(a->mask_dtype))) return DS_UNSUPPORTED_DTYPE;
  if (a->keys == 0) return DS_OK;
  const int64_t rows = a->outer * a->middle * a->queries;
  return launch<kernels::softmax_forward>(exec, rows, a->dtype, a->mask_dtype, a->causal, rows, a->middle, a->queries,
                                          a->keys, a->mask_outer_stride, a->mask_middle_stride, a->mask_query_stride,
                                          a->x, a->mask, a->lengths, a->y, static_cast<float>(a->scale));
}

int32_t softmax_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_softmax_backward_args*>(arguments);
  const int32_t refused = row_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::softmax_backward>(exec, a->rows, a->dtype, a->rows, a->columns, a->dy, a->y, a->dx,
                                           static_cast<float>(a->scale));
}

int32_t cross_entropy_forward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_cross_entropy_forward_args*>(arguments);
  const int32_t refused = loss_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::cross_entropy_forward>(exec, a->rows, a->dtype, a->label_smoothing, a->z_loss, a->rows,
                                                a->columns, a->ignore_index, a->logits, a->target, a->losses, a->lse);
}

int32_t cross_entropy_backward(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_cross_entropy_backward_args*>(arguments);
  const int32_t refused = loss_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::cross_entropy_backward>(exec, a->rows, a->dtype, a->label_smoothing, a->z_loss, a->rows,
                                                 a->columns, a->ignore_index, a->dlosses, a->logits, a->target, a->lse,
                                                 a->dlogits);
}

int32_t cross_entropy_in_place(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_cross_entropy_args*>(arguments);
  const int32_t refused = loss_refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::cross_entropy_in_place>(exec, a->rows, a->dtype, a->label_smoothing, a->z_loss, a->factor,
                                                 a->rows, a->columns, a->ignore_index, a->logits, a->target, a->losses);
}

}  // namespace dsk
