// What every GPU kernel includes: CUDA, HIP or the emulation, one way to launch, conversions, and sums in fixed order.
//
// Note [Writing a kernel]
// A kernel is a .cu file that nvcc, hipcc and, against emulation/, the host's compiler all take as it is:
//
//   #include "gpu/gpu.h"
//   #include "norm/rows.h"                      // declares `int32_t twice(const void*, const ds_exec*)`, and the rows
//   namespace dsk {
//   namespace {
//   template <typename T>
//   __global__ void __launch_bounds__(kThreads) twice_kernel(const T* x, T* y, int64_t numel) {
//     DSK_SHARED(float, tile, [kThreads]);      // not __shared__: the emulation has to see it. A scalar: (float, t, )
//     DSK_GRID_STRIDE(i, numel) y[i] = from_float<T>(2.0f * to_float(x[i]));
//   }
//   }  // namespace
//   int32_t twice(const void* arguments, const ds_exec* exec) {
//     const auto* a = static_cast<const ds_twice_args*>(arguments);
//     if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
//     return with_float_type(a->dtype, [&](auto tag) -> int32_t {       // DS_UNSUPPORTED_DTYPE for another dtype
//       using T = typename decltype(tag)::type;                         // float, bfloat16 or float16
//       return launch(exec, Shape(blocks_for(a->numel, kThreads), kThreads), twice_kernel<T>,
//                     static_cast<const T*>(a->x), static_cast<T*>(a->y), a->numel);
//     });
//   }
//   }  // namespace dsk
//
// Rules: blocks have a multiple of 64 threads, so that they are whole warps everywhere; every thread reaches every
// barrier and names all lanes (kAllLanes) in operations of a warp; a warp has kWarp lanes, 32 or 64, and a result may
// not depend on it. A launch of no blocks is DS_OK. Launch after launch on one stream, no waiting, no allocation:
// scratch is exec->workspace, whose size is the row's `_workspace` function. Dynamic shared memory: Shape(grid, block,
// bytes) and dynamic_shared<T>(); above 48 KiB, up to 64 KiB: .large(). Floats are computed as written, without
// contraction; fmaf where one rounding is meant. An index that names no row: `report_bad_index(); return;`. Elementary
// functions with the bits of the other backends are in gpu/elementary.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ds_kernel.h"
#include "gpu/message.h"

#if defined(DSK_EMULATED)
#include "gpu/on_emulation.h"
#elif defined(__HIP_PLATFORM_AMD__) || defined(__HIPCC__)
#include "gpu/on_hip.h"
#else
#include "gpu/on_cuda.h"
#endif

#include "gpu/convert.h"
#include "gpu/grid.h"
#include "gpu/reduce.h"
