// The ops the device has itself: making, viewing, resizing and copying tensors. All others run as `run_on_host` says.
#include <ATen/EmptyTensor.h>
#include <ATen/native/transformers/attention.h>
#include <ATen/ops/_fused_sdp_choice_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <array>
#include <atomic>

#include "device.h"
#include "host_run.h"

namespace openbox {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

struct Traffic {
  std::atomic<int64_t> to_device_bytes{0};
  std::atomic<int64_t> to_host_bytes{0};
};
std::array<Traffic, kCount> traffic;

c10::DeviceIndex index_of(std::optional<c10::Device> device) {
  return device.has_value() && device->has_index() ? device->index() : current_device();
}

// ---- making

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                 std::optional<at::Device> device, std::optional<bool> pin, std::optional<at::MemoryFormat> format) {
  TORCH_CHECK(!pin.value_or(false), "only host memory can be pinned");
  const OnDevice use(index_of(device));
  return at::detail::empty_generic(size, device_memory(), kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                         std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool> pin) {
  TORCH_CHECK(!pin.value_or(false), "only host memory can be pinned");
  const OnDevice use(index_of(device));
  return at::detail::empty_strided_generic(size, stride, device_memory(), kKeys, c10::dtype_or_default(dtype));
}

const at::Tensor& resize_(const at::Tensor& self, c10::IntArrayRef size, std::optional<at::MemoryFormat> format) {
  const OnDevice use(self.device().index());
  return at::native::resize_(self, size, format);
}

at::Tensor& set_empty_(at::Tensor& self) {
  const OnDevice use(self.device().index());
  c10::Storage storage(c10::Storage::use_byte_size_t(), 0, device_memory(), true);
  return at::native::set_storage_cpu_(self, std::move(storage), 0, {0}, {});
}

// ---- copying

void count(const at::Tensor& from, const at::Tensor& to) {
  if (from.device().type() == to.device().type()) return;
  if (to.device().type() == kType)
    traffic[to.device().index()].to_device_bytes += static_cast<int64_t>(to.nbytes());
  else
    traffic[from.device().index()].to_host_bytes += static_cast<int64_t>(from.nbytes());
}

at::Tensor copy_from(const at::Tensor& self, const at::Tensor& dst, bool) {
  HostViews views;
  count(self, dst);
  views.of(dst).copy_(views.of(self));
  return dst;
}

at::Tensor copy_from_and_resize(const at::Tensor& self, const at::Tensor& dst) {
  if (dst.sizes() != self.sizes()) dst.resize_(self.sizes());
  return copy_from(self, dst, false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  traffic[self.device().index()].to_host_bytes += static_cast<int64_t>(self.element_size());
  HostViews views;
  return views.of(self).item();
}

// ---- choosing

int64_t attention_kernel(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                         const std::optional<at::Tensor>& mask, double dropout, bool causal,
                         std::optional<double> scale, bool grouped) {
  HostViews views;
  std::optional<at::Tensor> host_mask;
  if (mask.has_value()) host_mask = views.of(*mask);
  if (mask.has_value() && mask->requires_grad()) host_mask->set_requires_grad(true);
  return at::native::_fused_sdp_choice_cpp(views.of(query), views.of(key), views.of(value), host_mask, dropout, causal,
                                           scale, grouped);
}

// ---- registration

// Note [Same numbers as the host]
// Where torch has both a host kernel for an op and a composition of other ops, devices that register nothing get the
// composition, whose rounding differs. These ops take the host's kernel, so that a run here is bit-equal to one there.
void prefer_host_kernels(torch::Library& library) {
  constexpr std::string_view prefix = "aten::";
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    if (name.name.compare(0, prefix.size(), prefix) != 0) continue;
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op.has_value() || op->hasKernelForDispatchKey(c10::DispatchKey::PrivateUse1)) continue;
    const bool composed = op->hasKernelForDispatchKey(c10::DispatchKey::CompositeExplicitAutograd) ||
                          op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
    if (composed && op->hasKernelForDispatchKey(c10::DispatchKey::CPU))
      library.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
  }
  // Compositions that look at the device and choose a kernel by it.
  for (const char* name : {"convolution", "convolution_backward"})
    library.impl(name, torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", empty);
  library.impl("empty_strided", empty_strided);
  library.impl("as_strided", at::native::as_strided_tensorimpl);
  library.impl("view", at::native::view);
  library.impl("_reshape_alias", at::native::_reshape_alias);
  library.impl("unfold", at::native::unfold);
  library.impl("resize_", resize_);
  library.impl("set_", set_empty_);
  library.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(at::native::set_));
  library.impl("set_.source_Tensor", at::native::set_tensor_);
  library.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
  library.impl("_copy_from", copy_from);
  library.impl("_copy_from_and_resize", copy_from_and_resize);
  library.impl("_local_scalar_dense", local_scalar);
  prefer_host_kernels(library);
}

// What the Python module of the device asks for.
TORCH_LIBRARY(openbox, library) {
  library.def("device_count() -> int", [] { return static_cast<int64_t>(kCount); });
  library.def("current_device() -> int", [] { return static_cast<int64_t>(current_device()); });
  library.def("set_device(int index) -> ()", [](int64_t index) {
    check_index(index);
    set_current_device(static_cast<c10::DeviceIndex>(index));
  });
  library.def("set_memory_limit(int index, int limit_bytes) -> ()", [](int64_t index, int64_t limit_bytes) {
    check_index(index);
    set_memory_limit(static_cast<c10::DeviceIndex>(index), static_cast<size_t>(limit_bytes));
  });
  library.def("traffic(int index) -> int[]", [](int64_t index) {
    check_index(index);
    return std::vector<int64_t>{traffic[index].to_device_bytes, traffic[index].to_host_bytes};
  });
  library.def("reset_traffic(int index) -> ()", [](int64_t index) {
    check_index(index);
    traffic[index].to_device_bytes = 0;
    traffic[index].to_host_bytes = 0;
  });
  library.def("seed(int index, int seed) -> ()", [](int64_t index, int64_t seed) {
    default_generator(static_cast<c10::DeviceIndex>(index))
        .unsafeGetGeneratorImpl()
        ->set_current_seed(static_cast<uint64_t>(seed));
  });
  library.def("rng_state(int index) -> Tensor", [](int64_t index) {
    return at::Tensor::wrap_tensor_impl(
        default_generator(static_cast<c10::DeviceIndex>(index)).unsafeGetGeneratorImpl()->get_state());
  });
  library.def("set_rng_state(int index, Tensor state) -> ()", [](int64_t index, const at::Tensor& state) {
    default_generator(static_cast<c10::DeviceIndex>(index))
        .unsafeGetGeneratorImpl()
        ->set_state(*state.unsafeGetTensorImpl());
  });
}

}  // namespace
}  // namespace openbox

namespace at::native {
REGISTER_PRIVATEUSE1_DISPATCH(_fused_sdp_choice_stub, &openbox::attention_kernel)
}
