// Rows as whole units of the widest kind that pointers and length allow.
#pragma once

#include "tokens/row_grid.h"

namespace dsk {

// Calls body with a value of the unit's type.
template <typename Body>
inline int32_t with_unit(uintptr_t together, const Body& body) {
  if ((together & 15) == 0) return body(Bytes16());
  if ((together & 7) == 0) return body(uint64_t());
  if ((together & 3) == 0) return body(uint32_t());
  if ((together & 1) == 0) return body(uint16_t());
  return body(uint8_t());
}

inline uintptr_t bits_of_address(const void* p) { return reinterpret_cast<uintptr_t>(p); }

template <typename Unit>
DSK_DEVICE void copy_units(Unit* to, const Unit* from, int64_t first, int64_t step, int64_t units) {
#pragma unroll 4
  for (int64_t i = first; i < units; i += step) to[i] = from[i];
}

}  // namespace dsk
