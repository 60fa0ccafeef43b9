// What every kernel shares: the dispatch over dtypes, blocks of float32, and the split of work into tasks.
//
// Note [One source, every level]
// Kernels are plain loops over float32 blocks that the compiler vectorizes for the level it is told. No result may
// depend on the level, so: no contraction (-ffp-contract=off), fma only where written and then exact on every level
// (fused.h), reductions over a fixed number of lanes, and no approximate division or square root.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "ds_kernel.h"

#define DSK_INLINE inline __attribute__((always_inline))

namespace dsk {

// Elements of a block: small enough that five float32 blocks stay in a 32 KiB first-level cache.
constexpr int64_t kBlock = 1024;

DSK_INLINE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
DSK_INLINE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
DSK_INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int64_t element_bytes(int32_t dtype) {
  switch (dtype) {
    case DS_F32:
      return 4;
    case DS_BF16:
    case DS_F16:
      return 2;
    case DS_I8:
      return 1;
    default:
      return 0;
  }
}

inline bool is_float(int32_t dtype) { return dtype == DS_F32 || dtype == DS_BF16 || dtype == DS_F16; }

DSK_INLINE const char* at(const void* base, int64_t index, int64_t bytes) {
  return static_cast<const char*>(base) + index * bytes;
}
DSK_INLINE char* at(void* base, int64_t index, int64_t bytes) { return static_cast<char*>(base) + index * bytes; }

// Runs body(task) for each task in [0, tasks), in parallel if the caller brought a pool.
template <typename Body>
inline void parallel_for(const ds_exec* exec, int64_t tasks, const Body& body) {
  auto call = [](void* context, int64_t task) { (*static_cast<const Body*>(context))(task); };
  if (exec->parallel_for != nullptr && exec->threads > 1 && tasks > 1) {
    exec->parallel_for(exec->pool, exec->threads, tasks, call, const_cast<Body*>(&body));
    return;
  }
  for (int64_t task = 0; task < tasks; ++task) body(task);
}

// Note [Long tasks]
// Memory runs fastest when each thread walks long stretches, so a task is up to kLongTask elements; it is shorter where
// that would leave threads idle. Only work whose result does not depend on the split may use this: elementwise loops,
// and loops over blocks whose partial results are kept apart.
constexpr int64_t kLongTask = 1024 * kBlock;

// Units of `unit` elements in one task.
inline int64_t units_per_task(const ds_exec* exec, int64_t numel, int64_t unit) {
  const int64_t share = numel / (16 * max64(exec->threads, 1));
  return max64(1, min64(share, kLongTask) / unit);
}

inline bool usable(const ds_exec* exec) { return exec != nullptr && exec->struct_size >= DS_EXEC_SIZE_1_0; }

}  // namespace dsk
