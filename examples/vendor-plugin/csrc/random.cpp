// Random numbers: each device has a generator of its own, of the kind the host has.
#include <ATen/CPUGeneratorImpl.h>

#include <array>

#include "device.h"

namespace openbox {
namespace {

class DeviceGenerator final : public at::CPUGeneratorImpl {
 public:
  explicit DeviceGenerator(c10::DeviceIndex index) {
    device_ = c10::Device(kType, index);
    key_set_ = c10::DispatchKeySet(c10::DispatchKey::PrivateUse1);
  }

 private:
  at::CPUGeneratorImpl* clone_impl() const override {
    auto* copy = new DeviceGenerator(device_.index());
    copy->set_state(*get_state());
    return copy;
  }
};

}  // namespace

at::Generator new_generator(c10::DeviceIndex index) {
  const c10::DeviceIndex at = index < 0 ? current_device() : index;
  check_index(at);
  return at::make_generator<DeviceGenerator>(at);
}

const at::Generator& default_generator(c10::DeviceIndex index) {
  static const auto* made = new std::array<at::Generator, kCount>{new_generator(0), new_generator(1)};
  const c10::DeviceIndex at = index < 0 ? current_device() : index;
  check_index(at);
  return (*made)[at];
}

}  // namespace openbox
