// The pretended device: what the other files of the backend know of it.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Device.h>
#include <c10/core/Storage.h>

#include <cstddef>
#include <cstdint>

namespace openbox {

constexpr c10::DeviceType kType = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex kCount = 2;

// The device in use, of the calling thread.
c10::DeviceIndex current_device();
void set_current_device(c10::DeviceIndex index);
void check_index(int64_t index);

// Uses device `index` while it lives.
class OnDevice {
 public:
  explicit OnDevice(c10::DeviceIndex index) : before_(current_device()) { set_current_device(index); }
  ~OnDevice() { set_current_device(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  c10::DeviceIndex before_;
};

// ---- memory.cpp

c10::DeviceAllocator* device_memory();
c10::Allocator* pinned_memory();
bool is_pinned(const void* data);
c10::Device device_of(const void* data);

// Most bytes device `index` gives out; 0 gives out what the host has.
void set_memory_limit(c10::DeviceIndex index, size_t limit_bytes);

// Gives `storage` room for `size_bytes`, keeping what fits.
void resize_bytes(c10::StorageImpl& storage, size_t size_bytes);

// ---- random.cpp

// The generator that draws for device `index` when the caller names none.
const at::Generator& default_generator(c10::DeviceIndex index);
at::Generator new_generator(c10::DeviceIndex index);

}  // namespace openbox
