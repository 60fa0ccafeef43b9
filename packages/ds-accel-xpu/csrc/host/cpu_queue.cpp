// For tests: a queue on a CPU OpenCL device, so that the kernels run where there is no Intel GPU. Not in a release
// wheel.
#include <cstdio>
#include <exception>
#include <sycl/sycl.hpp>

#define DSK_EXPORT extern "C" __attribute__((visibility("default")))

// A new in-order queue, or NULL with the reason on stderr.
DSK_EXPORT void* dsk_cpu_queue() {
  try {
    return new sycl::queue(sycl::cpu_selector_v, sycl::property::queue::in_order());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "no CPU OpenCL device: %s\n", error.what());
    return nullptr;
  }
}

// Waits until all work given to the queue is done; 0 if it went well.
DSK_EXPORT int dsk_wait(void* queue) {
  try {
    static_cast<sycl::queue*>(queue)->wait_and_throw();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "the queue failed: %s\n", error.what());
    return 1;
  }
}

// The name of the device and its driver, in static memory.
DSK_EXPORT const char* dsk_device_name(void* queue) {
  static std::string name;
  const sycl::device device = static_cast<sycl::queue*>(queue)->get_device();
  name = device.get_info<sycl::info::device::name>() + ", OpenCL driver " +
         device.get_info<sycl::info::device::driver_version>();
  return name.c_str();
}
