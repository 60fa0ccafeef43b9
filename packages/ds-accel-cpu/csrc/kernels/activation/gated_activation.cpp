// gated_activation and its gradients, for two tensors and for the halves of one.
#include "activation/gated.h"
#include "activation/rows.h"
#include "row_view.h"

namespace dsk {
namespace {

template <typename Kind>
void forward_rows(const ds_gated_activation_args& a, const ds_exec* exec) {
  const int64_t bytes = element_bytes(a.dtype);
  for_row_blocks(exec, a.rows, a.columns, [&a, bytes](int64_t row, int64_t column, int64_t n) {
    alignas(64) float gate[kBlock];
    alignas(64) float up[kBlock];
    alignas(64) float y[kBlock];
    load_block(a.dtype, at(a.gate, row * a.gate_stride + column, bytes), gate, n);
    load_block(a.dtype, at(a.up, row * a.up_stride + column, bytes), up, n);
    for (int64_t i = 0; i < n; ++i) y[i] = Kind::value(gate[i]) * up[i];
    store_block(a.dtype, y, at(a.y, row * a.columns + column, bytes), n);
  });
}

template <typename Kind>
void backward_rows(const ds_gated_activation_backward_args& a, const ds_exec* exec) {
  const int64_t bytes = element_bytes(a.dtype);
  for_row_blocks(exec, a.rows, a.columns, [&a, bytes](int64_t row, int64_t column, int64_t n) {
    alignas(64) float dy[kBlock];
    alignas(64) float gate[kBlock];
    alignas(64) float up[kBlock];
    alignas(64) float dgate[kBlock];
    alignas(64) float dup[kBlock];
    load_block(a.dtype, at(a.dy, row * a.columns + column, bytes), dy, n);
    load_block(a.dtype, at(a.gate, row * a.gate_stride + column, bytes), gate, n);
    load_block(a.dtype, at(a.up, row * a.up_stride + column, bytes), up, n);
    for (int64_t i = 0; i < n; ++i) {
      const Point point = Kind::point(gate[i]);
      dgate[i] = dy[i] * up[i] * point.slope;
      dup[i] = dy[i] * point.value;
    }
    store_block(a.dtype, dgate, at(a.dgate, row * a.dgate_stride + column, bytes), n);
    store_block(a.dtype, dup, at(a.dup, row * a.dup_stride + column, bytes), n);
  });
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  if (a->kind < DS_SILU || a->kind > DS_RELU) return DS_BAD_ARGUMENT;
  return is_float(a->dtype) ? DS_OK : DS_UNSUPPORTED_DTYPE;
}

}  // namespace

int32_t gated_activation(const void* arguments, const ds_exec* exec) {
  const ds_gated_activation_args* a = static_cast<const ds_gated_activation_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (a->kind == DS_SILU) forward_rows<Silu>(*a, exec);
  if (a->kind == DS_GELU) forward_rows<Gelu>(*a, exec);
  if (a->kind == DS_GELU_TANH) forward_rows<GeluTanh>(*a, exec);
  if (a->kind == DS_RELU) forward_rows<Relu>(*a, exec);
  return DS_OK;
}

int32_t gated_activation_backward(const void* arguments, const ds_exec* exec) {
  const ds_gated_activation_backward_args* a = static_cast<const ds_gated_activation_backward_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  if (a->kind == DS_SILU) backward_rows<Silu>(*a, exec);
  if (a->kind == DS_GELU) backward_rows<Gelu>(*a, exec);
  if (a->kind == DS_GELU_TANH) backward_rows<GeluTanh>(*a, exec);
  if (a->kind == DS_RELU) backward_rows<Relu>(*a, exec);
  return DS_OK;
}

}  // namespace dsk
