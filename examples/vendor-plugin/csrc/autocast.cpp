// torch.autocast("openbox"): matrix products and convolutions run in the lower precision, all else as it is.
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include "device.h"

namespace openbox {
namespace {

at::Tensor lowered(const at::Tensor& tensor, at::ScalarType to) {
  const bool casts = tensor.defined() && tensor.device().type() == kType && tensor.is_floating_point() &&
                     tensor.scalar_type() != at::kDouble;
  return casts ? tensor.to(to) : tensor;
}

void run_lowered(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const c10::impl::ExcludeDispatchKeyGuard once(c10::DispatchKey::AutocastPrivateUse1);
  const at::ScalarType to = at::autocast::get_autocast_dtype(kType);
  for (size_t at = stack->size() - op.schema().arguments().size(); at < stack->size(); ++at)
    if ((*stack)[at].isTensor()) (*stack)[at] = lowered((*stack)[at].toTensor(), to);
  op.callBoxed(stack);
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) { library.fallback(torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, library) {
  for (const char* name :
       {"mm", "bmm", "addmm", "addbmm", "baddbmm", "matmul", "linear", "linalg_vecdot", "conv1d", "conv2d", "conv3d",
        "conv_transpose1d", "conv_transpose2d.input", "conv_transpose3d.input", "scaled_dot_product_attention"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_lowered>());
}

}  // namespace
}  // namespace openbox
