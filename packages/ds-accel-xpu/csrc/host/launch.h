// Handing kernels to the queue of a call. No SYCL header here: runtime.cpp is the only file that includes one.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ds_kernel.h"
#include "table.h"

namespace dsk {

constexpr int64_t kGroup = 256;             // work-items of a work-group; csrc/kernels/common.h says the same
constexpr int64_t kMostGroups = 64 * 1024;  // kernels stride over what is left

// One argument of a kernel, as `kind` of table.h says.
struct Argument {
  char kind;
  union {
    int32_t i;
    int64_t l;
    float f;
    const void* p;
  };
};

template <typename Value>
constexpr char kind_of() {
  if (std::is_pointer_v<Value> || std::is_null_pointer_v<Value>) return 'p';
  if (std::is_same_v<Value, float>) return 'f';
  if (std::is_integral_v<Value> && sizeof(Value) == 4) return 'i';
  if (std::is_integral_v<Value> && sizeof(Value) == 8) return 'l';
  return '?';
}

template <typename Value>
Argument argument(Value value) {
  Argument made = {};
  made.kind = kind_of<Value>();
  if constexpr (kind_of<Value>() == 'p') made.p = value;
  if constexpr (kind_of<Value>() == 'f') made.f = value;
  if constexpr (kind_of<Value>() == 'i') made.i = static_cast<int32_t>(value);
  if constexpr (kind_of<Value>() == 'l') made.l = static_cast<int64_t>(value);
  return made;
}

template <typename... Values>
constexpr bool fits(const char* signature) {
  const char given[] = {kind_of<Values>()..., '\0'};
  for (unsigned i = 0; i < sizeof(given); ++i) {
    if (given[i] != signature[i]) return false;
  }
  return true;
}

// A row of table.h.
struct Kernel {
  const char* module;
  const char* name;
};

namespace kernels {
#define DSK_DECLARE(module_of, name_of, signature_of)      \
  struct name_of {                                         \
    static constexpr Kernel row = {#module_of, #name_of};  \
    static constexpr const char* signature = signature_of; \
  };
DSK_KERNELS(DSK_DECLARE)
#undef DSK_DECLARE
}  // namespace kernels

// Gives the kernel to the queue `exec->stream`, behind what was given to it before. Returns DS_OK or DS_DEVICE_ERROR.
int32_t enqueue(const ds_exec* exec, const Kernel& kernel, int64_t groups, const Argument* arguments, int count);

// The same for a row of table.h. No work-groups: nothing happens.
template <typename Row, typename... Values>
int32_t launch(const ds_exec* exec, int64_t groups, Values... values) {
  static_assert(fits<Values...>(Row::signature), "arguments differ from the signature in table.h");
  const Argument arguments[] = {argument(values)...};
  if (groups <= 0) return DS_OK;
  return enqueue(exec, Row::row, groups < kMostGroups ? groups : kMostGroups, arguments, sizeof...(Values));
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Work-groups for `count` independent elements.
inline int64_t groups_for(int64_t count) { return ceil_div(count, kGroup); }

inline bool is_float(int32_t dtype) { return dtype == DS_F32 || dtype == DS_BF16 || dtype == DS_F16; }

inline bool usable(const ds_exec* exec) {
  return exec != nullptr && exec->struct_size >= DS_EXEC_SIZE_1_0 && exec->stream != nullptr;
}

// Both keys of one tensor of one call that rounds by chance; ds_core/ops/rounding.py says how they come about.
inline uint64_t rounding_keys(int64_t seed, uint64_t stream) {
  uint64_t z = static_cast<uint64_t>(seed) + (stream + 1) * 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

}  // namespace dsk
