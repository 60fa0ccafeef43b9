// Running an op of the device with the kernel torch has for the host.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/SmallVector.h>

#include <utility>

namespace openbox {

// Note [Host view]
// The device's memory is memory of this process, so torch's host kernels can work on it. A host view is a CPU tensor
// over the memory of a device tensor; it owns nothing, lives for one call, and nobody outside this backend sees one.
class HostViews {
 public:
  // A host view of a device tensor; the same one when asked again. Anything else is returned as it is.
  at::Tensor of(const at::Tensor& tensor);

  // Brings back to the device what a kernel did to views: new sizes, strides and grown storages.
  void settle();

  // The device tensor for a result: the one whose view it is, another over the same memory, or a copy on `device`.
  at::Tensor result(const at::Tensor& host, c10::Device device);

 private:
  c10::SmallVector<std::pair<at::Tensor, at::Tensor>, 8> tensors_;       // device, host
  c10::SmallVector<std::pair<c10::Storage, c10::Storage>, 8> storages_;  // device, host
};

// Kernel for any op: host views in, the host's kernel, device tensors out.
void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet keys, torch::jit::Stack* stack);

}  // namespace openbox
