// The emulation behind gpu/gpu.h: memory is the host's, a launch has run when it returns.
#pragma once

#include <cstring>
#include <tuple>

#include "emulation/intrinsics.h"
#include "emulation/language.h"

#define DSK_DEVICE inline
#define DSK_HOST_DEVICE inline

// type name size of shared memory, for example DSK_SHARED(float, tile, [32][33]).
#define DSK_SHARED(type, name, size)                                                    \
  using name##_shared_type = type size;                                                 \
  static const char name##_shared_tag = 0;                                              \
  name##_shared_type& name = *static_cast<name##_shared_type*>(::dsk_emulation::shared( \
      &name##_shared_tag, sizeof(name##_shared_type), alignof(name##_shared_type), {__FILE__, __LINE__}))

namespace dsk {

using LaneMask = dsk_emulation::Mask;
constexpr int kWarp = dsk_emulation::kWarp;

// Lanes of a warp of the device that `exec` runs on.
inline int warp_width(const ds_exec*) { return kWarp; }

class Shape {
 public:
  Shape(dim3 grid, dim3 block, size_t shared_bytes = 0, const char* file = __builtin_FILE(),
        int line = __builtin_LINE())
      : shape_{grid, block, shared_bytes, false, {file, line}} {}
  Shape& large() {
    shape_.large_shared = true;
    return *this;
  }
  const dsk_emulation::Shape& native() const { return shape_; }

 private:
  dsk_emulation::Shape shape_;
};

template <typename... Parameters>
int32_t launch(const ds_exec* exec, const Shape& shape, void (*kernel)(Parameters...),
               std::common_type_t<Parameters>... arguments) {
  if (shape.native().grid.x == 0) return DS_OK;
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  const Call call = {kernel, {arguments...}};
  const auto run = [](const void* from) {
    const Call& one = *static_cast<const Call*>(from);
    std::apply(one.kernel, one.arguments);
  };
  const int32_t status = dsk_emulation::run(shape.native(), run, &call, exec->threads);
  if (status != DS_OK) explain(exec, dsk_emulation::last_error());
  return status;
}

inline int32_t set_bytes(const ds_exec*, void* memory, int value, size_t bytes) {
  if (bytes != 0) std::memset(memory, value, bytes);
  return DS_OK;
}

// Between memory of the device.
inline int32_t copy_bytes(const ds_exec*, void* to, const void* from, size_t bytes) {
  if (bytes != 0) std::memcpy(to, from, bytes);
  return DS_OK;
}

template <typename T>
T* dynamic_shared() {
  return static_cast<T*>(dsk_emulation::dynamic_shared());
}

// sum + the products of the four signed bytes of a and b.
inline int32_t dot4(int32_t a, int32_t b, int32_t sum) { return __dp4a(a, b, sum); }

// An index tensor holds a row that is not there. The caller does not touch it.
inline void report_bad_index() { dsk_emulation::fail(DS_INDEX_OUT_OF_RANGE, "an index names a row that is not there"); }

}  // namespace dsk
