// Why a call is refused, in the room that its caller left for that.
#pragma once

#include <cstddef>

#include "ds_kernel.h"

namespace dsk {

inline void explain(const ds_exec* exec, const char* text) {
  constexpr uint32_t kNeeded = offsetof(ds_exec, message_bytes) + sizeof(uint64_t);  // since ABI 1.1
  if (exec->struct_size < kNeeded || exec->message == nullptr || exec->message_bytes == 0) return;
  uint64_t i = 0;
  for (; i + 1 < exec->message_bytes && text[i] != 0; ++i) exec->message[i] = text[i];
  exec->message[i] = 0;
}

}  // namespace dsk
