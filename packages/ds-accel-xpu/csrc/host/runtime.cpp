// The only file that knows SYCL: modules of SPIR-V built for a device, and kernels given to a queue.
//
// The queue is torch.xpu's: `ds_exec.stream` is the address of its sycl::queue, so this library and torch must use one
// libsycl. It is built once for each version of it that is found (libdsk_xpu_sycl8.so, libdsk_xpu_sycl9.so).
#include <algorithm>
#include <cstring>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <string>
#include <sycl/sycl.hpp>
#include <unordered_map>
#include <utility>
#include <vector>

#include "indices.h"
#include "launch.h"
#include "modules.h"

namespace dsk {
namespace {

namespace exp = sycl::ext::oneapi::experimental;
using Executable = sycl::kernel_bundle<sycl::bundle_state::executable>;

// What was built for one device of one context. Kept to the end of the process, which may come after SYCL's own.
struct Built {
  sycl::context context;
  sycl::device device;
  std::unordered_map<std::string, Executable> modules;
  std::unordered_map<const char*, sycl::kernel> kernels;  // by the address of the name, which is a constant
  volatile int* flag = nullptr;                           // see Note [Late news]
};

std::mutex& lock() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

Built& built_for(const sycl::queue& queue) {
  static auto* all = new std::vector<Built*>;
  const sycl::context context = queue.get_context();
  const sycl::device device = queue.get_device();
  for (Built* built : *all) {
    if (built->context == context && built->device == device) return *built;
  }
  all->push_back(new Built{context, device, {}, {}});
  return *all->back();
}

Executable& module_of(Built& built, const std::string& name) {
  const auto found = built.modules.find(name);
  if (found != built.modules.end()) return found->second;
  const Module* module = find_module(name.c_str());
  if (module == nullptr) throw std::runtime_error("this library was built without the module " + name);
  std::vector<std::byte> bytes(module->size);
  std::memcpy(bytes.data(), module->data, module->size);
  auto source = exp::create_kernel_bundle_from_source(built.context, exp::source_language::spirv, bytes);
  auto ready = exp::build(source, std::vector<sycl::device>{built.device});
  return built.modules.emplace(name, std::move(ready)).first->second;
}

sycl::kernel& kernel_of(Built& built, const Kernel& kernel) {
  const auto found = built.kernels.find(kernel.name);
  if (found != built.kernels.end()) return found->second;
  sycl::kernel made = module_of(built, kernel.module).ext_oneapi_get_kernel(kernel.name);
  return built.kernels.emplace(kernel.name, std::move(made)).first->second;
}

void set(sycl::handler& handler, int at, const Argument& argument) {
  switch (argument.kind) {
    case 'i':
      return handler.set_arg(at, argument.i);
    case 'l':
      return handler.set_arg(at, argument.l);
    case 'f':
      return handler.set_arg(at, argument.f);
    default:
      return handler.set_arg(at, const_cast<void*>(argument.p));
  }
}

// Puts one line into the caller's room for a message, if it brought one.
void say(const ds_exec* exec, const std::string& text) {
  if (exec->struct_size < sizeof(ds_exec) || exec->message == nullptr || exec->message_bytes == 0) return;
  const size_t size = std::min<size_t>(text.size(), exec->message_bytes - 1);
  std::memcpy(exec->message, text.data(), size);
  exec->message[size] = '\0';
  std::replace(exec->message, exec->message + size, '\n', ' ');
}

int32_t failed(const ds_exec* exec, const char* what, const std::exception& error) {
  say(exec, std::string(what) + ": " + error.what());
  return DS_DEVICE_ERROR;
}

// The flag of a device, cleared when it was made. Host memory that the device writes to.
volatile int* flag_of(sycl::queue& queue) {
  const std::lock_guard<std::mutex> guard(lock());
  Built& built = built_for(queue);
  if (built.flag == nullptr) {
    int* made = sycl::malloc_host<int>(1, queue);
    if (made == nullptr) throw std::runtime_error("no host memory that the device can write to");
    *made = 0;
    built.flag = made;
  }
  return built.flag;
}

bool take(volatile int* flag) {
  const bool was_set = *flag != 0;
  *flag = 0;
  return was_set;
}

}  // namespace

int32_t enqueue(const ds_exec* exec, const Kernel& kernel, int64_t groups, const Argument* arguments, int count) {
  try {
    sycl::queue& queue = *static_cast<sycl::queue*>(exec->stream);
    const std::lock_guard<std::mutex> guard(lock());
    sycl::kernel& ready = kernel_of(built_for(queue), kernel);
    if (!queue.is_in_order()) queue.ext_oneapi_submit_barrier();
    queue.submit([&](sycl::handler& handler) {
      for (int at = 0; at < count; ++at) set(handler, at, arguments[at]);
      const size_t size = static_cast<size_t>(groups * kGroup);
      handler.parallel_for(sycl::nd_range<1>(size, static_cast<size_t>(kGroup)), ready);
    });
    return DS_OK;
  } catch (const std::exception& error) {
    return failed(exec, kernel.name, error);
  }
}

int32_t check_indices(const ds_exec* exec, const int64_t* index, int64_t count, int64_t rows, int64_t other,
                      int64_t length) {
  try {
    sycl::queue& queue = *static_cast<sycl::queue*>(exec->stream);
    volatile int* flag = flag_of(queue);
    if (take(flag)) {
      say(exec, "that of an earlier call, whose results hold NaN; this call did nothing");
      return DS_INDEX_OUT_OF_RANGE;
    }
    const int32_t status = launch<kernels::check_index>(exec, groups_for(count), index, count, rows, other, length,
                                                        const_cast<int*>(flag));
    if (status != DS_OK || !queue.get_device().is_cpu()) return status;
    queue.wait_and_throw();
    return take(flag) ? DS_INDEX_OUT_OF_RANGE : DS_OK;
  } catch (const std::exception& error) {
    return failed(exec, "check_index", error);
  }
}

}  // namespace dsk
