// The HIP runtime as compiled kernels call it, found when the first of them is launched.
//
// Note [No link to a ROCm]
// A library that is linked with libamdhip64.so.5 needs that very major version, and torch brings one of its own. So the
// functions that hipcc's code calls are defined here. Registrations, which happen while the library is loaded, are
// kept; the first launch looks for the runtime that is in the process already (torch's), then for an installed one of
// any major version, hands the registrations over, and from then on all calls go through.
//
// Source: hip/hip_runtime_api.h and the calls that clang emits for HIP, as its documentation "HIP Support" describes.
#include <dlfcn.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

namespace {

struct Dim3 {
  uint32_t x, y, z;
};

using Status = int;
constexpr Status kNoRuntime = 3;  // hipErrorNotInitialized

struct Function {
  size_t binary;
  const void* host;
  char* device;
  const char* name;
  unsigned int thread_limit;
  int* wave_size;
};

struct Runtime {
  void** (*register_binary)(const void*) = nullptr;
  void (*unregister_binary)(void**) = nullptr;
  void (*register_function)(void**, const void*, char*, const char*, unsigned int, void*, void*, void*, void*,
                            int*) = nullptr;
  Status (*launch)(const void*, Dim3, Dim3, void**, size_t, void*) = nullptr;
  Status (*set)(void*, int, size_t, void*) = nullptr;
  Status (*copy)(void*, const void*, size_t, int, void*) = nullptr;
  Status (*device)(int*) = nullptr;
  Status (*attribute)(int*, int, int) = nullptr;
  Status (*last_error)() = nullptr;
  const char* (*describe)(Status) = nullptr;

  bool is_complete() const {
    return register_binary && unregister_binary && register_function && launch && set && copy && device && attribute &&
           last_error && describe;
  }
};

// All there is in one place, made at its first use: constructors of other files come here before ours would run.
struct State {
  std::mutex mutex;
  std::vector<const void*> binaries;
  std::vector<void**> handles;  // of the runtime, once it is there
  std::vector<Function> functions;
  Runtime runtime;
  bool is_ready = false;
};

State& state() {
  static State* made = new State;  // never destroyed: kernels may be called until the process ends
  return *made;
}

// The runtime that some library of the process has loaded, by the name of its file.
void* loaded_runtime() {
  std::FILE* maps = std::fopen("/proc/self/maps", "r");
  if (maps == nullptr) return nullptr;
  char line[4096];
  void* found = nullptr;
  while (found == nullptr && std::fgets(line, sizeof(line), maps) != nullptr) {
    char* path = std::strchr(line, '/');
    if (path == nullptr || std::strstr(path, "/libamdhip64") == nullptr) continue;
    path[std::strcspn(path, "\n")] = '\0';
    found = dlopen(path, RTLD_NOW | RTLD_NOLOAD | RTLD_LOCAL);
  }
  std::fclose(maps);
  return found;
}

void* find_runtime() {
  void* found = loaded_runtime();
  for (const char* name : {"libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so.5", "libamdhip64.so"}) {
    if (found == nullptr) found = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  return found;
}

template <typename F>
void take(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
}

bool make_ready(State& s) {
  if (s.is_ready) return true;
  void* library = find_runtime();
  if (library == nullptr) return false;
  take(library, "__hipRegisterFatBinary", s.runtime.register_binary);
  take(library, "__hipUnregisterFatBinary", s.runtime.unregister_binary);
  take(library, "__hipRegisterFunction", s.runtime.register_function);
  take(library, "hipLaunchKernel", s.runtime.launch);
  take(library, "hipMemsetAsync", s.runtime.set);
  take(library, "hipMemcpyAsync", s.runtime.copy);
  take(library, "hipGetDevice", s.runtime.device);
  take(library, "hipDeviceGetAttribute", s.runtime.attribute);
  take(library, "hipGetLastError", s.runtime.last_error);
  take(library, "hipGetErrorString", s.runtime.describe);
  if (!s.runtime.is_complete()) return false;
  for (const void* binary : s.binaries) s.handles.push_back(s.runtime.register_binary(binary));
  for (const Function& f : s.functions) {
    s.runtime.register_function(s.handles[f.binary], f.host, f.device, f.name, f.thread_limit, nullptr, nullptr,
                                nullptr, nullptr, f.wave_size);
  }
  s.is_ready = true;
  return true;
}

const Runtime* runtime() {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  return make_ready(s) ? &s.runtime : nullptr;
}

}  // namespace

extern "C" {

// The handle is the number of the binary plus one, until the runtime is there.
void** __hipRegisterFatBinary(const void* data) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.binaries.push_back(data);
  return reinterpret_cast<void**>(s.binaries.size());
}

void __hipRegisterFunction(void** modules, const void* host, char* device, const char* name, unsigned int thread_limit,
                           void*, void*, void*, void*, int* wave_size) {
  State& s = state();
  const std::lock_guard<std::mutex> lock(s.mutex);
  s.functions.push_back({reinterpret_cast<size_t>(modules) - 1, host, device, name, thread_limit, wave_size});
}

// Called when the process ends, where the runtime may be gone before us: it frees what is registered by itself.
void __hipUnregisterFatBinary(void**) {}

// Only the bodies of kernels on the host, which nobody calls, refer to these.
Status __hipPushCallConfiguration(Dim3, Dim3, size_t, void*) { return kNoRuntime; }
Status __hipPopCallConfiguration(Dim3*, Dim3*, size_t*, void**) { return kNoRuntime; }

Status hipLaunchKernel(const void* function, Dim3 grid, Dim3 block, void** arguments, size_t shared_bytes,
                       void* stream) {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->launch(function, grid, block, arguments, shared_bytes, stream);
}

Status hipMemsetAsync(void* memory, int value, size_t bytes, void* stream) {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->set(memory, value, bytes, stream);
}

Status hipMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->copy(to, from, bytes, kind, stream);
}

Status hipGetDevice(int* device) {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->device(device);
}

Status hipDeviceGetAttribute(int* value, int attribute, int device) {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->attribute(value, attribute, device);
}

Status hipGetLastError() {
  const Runtime* found = runtime();
  return found == nullptr ? kNoRuntime : found->last_error();
}

const char* hipGetErrorString(Status error) {
  const Runtime* found = runtime();
  return found == nullptr ? "no HIP runtime (libamdhip64) is loaded or installed" : found->describe(error);
}

}  // extern "C"
