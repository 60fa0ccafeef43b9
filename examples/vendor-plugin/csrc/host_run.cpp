#include "host_run.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <c10/core/DispatchKeySet.h>

#include <mutex>
#include <optional>
#include <string_view>

#include "device.h"

namespace openbox {
namespace {

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kType; }

at::Tensor over(const c10::Storage& storage, const at::Tensor& shape, c10::DispatchKey key) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), shape.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(shape.sizes(), shape.strides(), shape.storage_offset());
  return made;
}

// Draws from the device's generator while it lives: its state takes the place of the host's.
class DrawFrom {
 public:
  explicit DrawFrom(at::Generator generator)
      : lock_(turn()), device_(std::move(generator)), host_(at::detail::getDefaultCPUGenerator()) {
    before_ = host_.unsafeGetGeneratorImpl()->get_state();
    host_.unsafeGetGeneratorImpl()->set_state(*device_.unsafeGetGeneratorImpl()->get_state());
  }
  ~DrawFrom() {
    device_.unsafeGetGeneratorImpl()->set_state(*host_.unsafeGetGeneratorImpl()->get_state());
    host_.unsafeGetGeneratorImpl()->set_state(*before_);
  }

 private:
  static std::mutex& turn() {
    static std::mutex mutex;
    return mutex;
  }

  std::lock_guard<std::mutex> lock_;
  at::Generator device_;
  at::Generator host_;
  c10::intrusive_ptr<c10::TensorImpl> before_;
};

// What the arguments of one call say: where results go, who draws, and whether host tensors slipped in.
class Arguments {
 public:
  Arguments(const c10::OperatorHandle& op, HostViews& views) : op_(op), views_(views) {}

  void to_host(c10::IValue& value) {
    if (value.isTensor()) {
      value = tensor(value.toTensor());
    } else if (value.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& each : value.toTensorVector()) list.push_back(tensor(each));
      value = std::move(list);
    } else if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& each : value.toOptionalTensorList())
        list.push_back(each.has_value() ? std::optional<at::Tensor>(tensor(*each)) : std::nullopt);
      value = std::move(list);
    } else if (value.isDevice()) {
      if (value.toDevice().type() == kType) device_ = value.toDevice();
      value = c10::Device(c10::DeviceType::CPU);
    } else if (value.isGenerator()) {
      generator_ = value.toGenerator();
      value = c10::IValue();
    }
  }

  c10::Device device() const {
    return device_.has_value() && device_->has_index() ? *device_ : c10::Device(kType, current_device());
  }

  at::Generator generator() const { return generator_.has_value() ? *generator_ : default_generator(device().index()); }

  // A device that works on one address space would not notice tensors left on the host; a real one fails on them.
  void check_together() const {
    if (!device_.has_value() || !stray_.has_value()) return;
    const std::string& name = op_.schema().name();
    const bool indexes = name == "aten::index" || name == "aten::_unsafe_index" || name == "aten::_index_put_impl_";
    TORCH_CHECK(indexes && c10::isIntegralType(stray_->scalar_type(), true), name, ": expected all tensors to be on ",
                *device_, ", found one of shape ", stray_->sizes(), " on ", stray_->device());
  }

 private:
  at::Tensor tensor(const at::Tensor& given) {
    if (on_device(given)) {
      if (device_.has_value() && given.dim() > 0 && device_->has_index() && *device_ != given.device()) stray_ = given;
      if (!device_.has_value() || !device_->has_index()) device_ = given.device();
    } else if (given.defined() && given.dim() > 0) {
      stray_ = given;
    }
    return views_.of(given);
  }

  const c10::OperatorHandle& op_;
  HostViews& views_;
  std::optional<c10::Device> device_;
  std::optional<at::Generator> generator_;
  std::optional<at::Tensor> stray_;
};

void to_device(c10::IValue& value, HostViews& views, c10::Device device) {
  if (value.isTensor()) {
    value = views.result(value.toTensor(), device);
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& each : value.toTensorVector()) list.push_back(views.result(each, device));
    value = std::move(list);
  }
}

}  // namespace

at::Tensor HostViews::of(const at::Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  for (const auto& [device, host] : tensors_)
    if (device.is_same(tensor)) return host;
  TORCH_CHECK(tensor.layout() == c10::kStrided, "openbox has strided tensors only, got layout ", tensor.layout());
  c10::Storage shared;
  for (const auto& [device, host] : storages_)
    if (device.is_alias_of(tensor.storage())) shared = host;
  if (!shared) {
    const c10::Storage& own = tensor.storage();
    c10::DataPtr data(own.mutable_data(), c10::Device(c10::DeviceType::CPU));
    shared = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), own.nbytes(), std::move(data),
                                                   c10::GetAllocator(c10::DeviceType::CPU), true);
    storages_.emplace_back(own, shared);
  }
  at::Tensor host = over(shared, tensor, c10::DispatchKey::CPU);
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) host.unsafeGetTensorImpl()->set_wrapped_number(true);
  tensors_.emplace_back(tensor, host);
  return host;
}

void HostViews::settle() {
  for (auto& [device, host] : storages_) {
    if (host.data() == device.data()) continue;
    resize_bytes(*device.unsafeGetStorageImpl(), host.nbytes());
    device_memory()->copy_data(device.mutable_data(), host.data(), host.nbytes());
  }
  for (auto& [device, host] : tensors_) {
    const bool same = host.storage_offset() == device.storage_offset() && host.sizes() == device.sizes() &&
                      host.strides() == device.strides();
    if (!same) device.unsafeGetTensorImpl()->set_sizes_and_strides(host.sizes(), host.strides(), host.storage_offset());
  }
}

at::Tensor HostViews::result(const at::Tensor& host, c10::Device device) {
  if (!host.defined()) return host;
  for (const auto& [own, view] : tensors_)
    if (view.is_same(host)) return own;
  for (const auto& [own, view] : storages_)
    if (view.is_alias_of(host.storage())) return over(own, host, c10::DispatchKey::PrivateUse1);
  const OnDevice use(device.index());
  at::Tensor made =
      at::detail::empty_strided_generic(host.sizes(), host.strides(), device_memory(),
                                        c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), host.scalar_type());
  if (host.numel() != 0) HostViews().of(made).copy_(host);
  return made;
}

void run_on_host(const c10::OperatorHandle& op, c10::DispatchKeySet, torch::jit::Stack* stack) {
  HostViews views;
  Arguments arguments(op, views);
  const size_t inputs = op.schema().arguments().size();
  for (size_t at = stack->size() - inputs; at < stack->size(); ++at) arguments.to_host((*stack)[at]);
  arguments.check_together();
  {
    std::optional<DrawFrom> draws;
    if (op.hasTag(at::Tag::nondeterministic_seeded)) draws.emplace(arguments.generator());
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  }
  views.settle();
  const size_t outputs = op.schema().returns().size();
  for (size_t at = stack->size() - outputs; at < stack->size(); ++at)
    to_device((*stack)[at], views, arguments.device());
}

}  // namespace openbox
