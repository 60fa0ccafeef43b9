// The words of CUDA C++ that kernels use, for a host compiler: qualifiers, indices, vectors, barriers and warps.
#pragma once

#include "emulation/machine.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

// A host compiler cannot give a variable to each block; DSK_SHARED of gpu/gpu.h says the same for every compiler.
#define __shared__ static_assert(false, "write DSK_SHARED(type, name, [size]) of gpu/gpu.h in place of __shared__");

#define threadIdx (::dsk_emulation::current->index)
#define blockIdx (::dsk_emulation::current->block)
#define blockDim (::dsk_emulation::current->block_size)
#define gridDim (::dsk_emulation::current->grid_size)
constexpr int warpSize = dsk_emulation::kWarp;

// Vectors, as aligned as the device has them.
#define DSK_VECTOR(type, name, align2, align4)                     \
  struct alignas(align2) name##2 { type x, y; };                   \
  struct name##3_ { type x, y, z; };                               \
  struct alignas(align4) name##4 { type x, y, z, w; };             \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; } \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
DSK_VECTOR(float, float, 8, 16)
DSK_VECTOR(int, int, 8, 16)
DSK_VECTOR(unsigned int, uint, 8, 16)
DSK_VECTOR(short, short, 4, 8)
DSK_VECTOR(unsigned short, ushort, 4, 8)
DSK_VECTOR(signed char, char, 2, 4)
DSK_VECTOR(unsigned char, uchar, 2, 4)
DSK_VECTOR(double, double, 16, 16)
DSK_VECTOR(long long, longlong, 16, 16)
#undef DSK_VECTOR

#define DSK_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define DSK_SITE \
  dsk_emulation::Site { file, line }

inline void __syncthreads(DSK_SITE_PARAMETERS) {
  dsk_emulation::barrier(dsk_emulation::Barrier::kPlain, false, DSK_SITE);
}
inline int __syncthreads_count(int predicate, DSK_SITE_PARAMETERS) {
  return dsk_emulation::barrier(dsk_emulation::Barrier::kCount, predicate != 0, DSK_SITE);
}
inline int __syncthreads_and(int predicate, DSK_SITE_PARAMETERS) {
  return dsk_emulation::barrier(dsk_emulation::Barrier::kAnd, predicate != 0, DSK_SITE);
}
inline int __syncthreads_or(int predicate, DSK_SITE_PARAMETERS) {
  return dsk_emulation::barrier(dsk_emulation::Barrier::kOr, predicate != 0, DSK_SITE);
}

inline void __syncwarp(dsk_emulation::Mask mask = static_cast<dsk_emulation::Mask>(~dsk_emulation::Mask{0}),
                       DSK_SITE_PARAMETERS) {
  dsk_emulation::warp(dsk_emulation::WarpOp::kSync, mask, 0, 0, DSK_SITE);
}
inline dsk_emulation::Mask __ballot_sync(dsk_emulation::Mask mask, int predicate, DSK_SITE_PARAMETERS) {
  return static_cast<dsk_emulation::Mask>(
      dsk_emulation::warp(dsk_emulation::WarpOp::kBallot, mask, predicate != 0, 0, DSK_SITE));
}
inline int __any_sync(dsk_emulation::Mask mask, int predicate, DSK_SITE_PARAMETERS) {
  return static_cast<int>(dsk_emulation::warp(dsk_emulation::WarpOp::kAny, mask, predicate != 0, 0, DSK_SITE));
}
inline int __all_sync(dsk_emulation::Mask mask, int predicate, DSK_SITE_PARAMETERS) {
  return static_cast<int>(dsk_emulation::warp(dsk_emulation::WarpOp::kAll, mask, predicate != 0, 0, DSK_SITE));
}
// A device may find any set of lanes that run together; one alone is what the least helpful device would say.
inline dsk_emulation::Mask __activemask() { return dsk_emulation::Mask{1} << dsk_emulation::lane(); }

template <typename T>
T __shfl_sync(dsk_emulation::Mask mask, T value, int index, int width = warpSize, DSK_SITE_PARAMETERS) {
  return dsk_emulation::shuffle(mask, value, dsk_emulation::source_of_index(dsk_emulation::lane(), index, width),
                                DSK_SITE);
}
template <typename T>
T __shfl_up_sync(dsk_emulation::Mask mask, T value, unsigned delta, int width = warpSize, DSK_SITE_PARAMETERS) {
  return dsk_emulation::shuffle(mask, value, dsk_emulation::source_of_up(dsk_emulation::lane(), delta, width),
                                DSK_SITE);
}
template <typename T>
T __shfl_down_sync(dsk_emulation::Mask mask, T value, unsigned delta, int width = warpSize, DSK_SITE_PARAMETERS) {
  return dsk_emulation::shuffle(mask, value, dsk_emulation::source_of_down(dsk_emulation::lane(), delta, width),
                                DSK_SITE);
}
template <typename T>
T __shfl_xor_sync(dsk_emulation::Mask mask, T value, int bits, int width = warpSize, DSK_SITE_PARAMETERS) {
  return dsk_emulation::shuffle(mask, value, dsk_emulation::source_of_xor(dsk_emulation::lane(), bits, width),
                                DSK_SITE);
}

#undef DSK_SITE_PARAMETERS
#undef DSK_SITE
