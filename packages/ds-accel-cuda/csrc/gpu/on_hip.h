// HIP behind gpu/gpu.h. Warps of 32 or 64 lanes, by architecture; shuffles and votes are of all lanes.
#pragma once

#include <hip/hip_runtime.h>

#define DSK_DEVICE __device__ __forceinline__
#define DSK_HOST_DEVICE __host__ __device__ __forceinline__
#if !defined(__grid_constant__)
#define __grid_constant__
#endif

#define DSK_SHARED(type, name, size) __shared__ type name size

// Compilers before ROCm 7 have no masks in these; kernels name all lanes, so nothing is lost.
#if !defined(HIP_ENABLE_WARP_SYNC_BUILTINS) && !defined(__shfl_sync)
#define __shfl_sync(mask, ...) __shfl(__VA_ARGS__)
#define __shfl_up_sync(mask, ...) __shfl_up(__VA_ARGS__)
#define __shfl_down_sync(mask, ...) __shfl_down(__VA_ARGS__)
#define __shfl_xor_sync(mask, ...) __shfl_xor(__VA_ARGS__)
#define __ballot_sync(mask, predicate) __ballot(predicate)
#define __any_sync(mask, predicate) __any(predicate)
#define __all_sync(mask, predicate) __all(predicate)
#endif
// Lanes of a wave run together, so only the compiler has to be held back.
#define __syncwarp(...) __builtin_amdgcn_wave_barrier()

namespace dsk {

using LaneMask = unsigned long long;
#if defined(__GFX9__) || defined(__GFX8__) || !defined(__HIP_DEVICE_COMPILE__)
constexpr int kWarp = 64;
#else
constexpr int kWarp = 32;
#endif

inline int warp_width(const ds_exec*) {
  int device = 0;
  int width = 64;
  if (hipGetDevice(&device) == hipSuccess) (void)hipDeviceGetAttribute(&width, hipDeviceAttributeWarpSize, device);
  return width;
}

class Shape {
 public:
  Shape(dim3 grid, dim3 block, size_t shared_bytes = 0) : grid_(grid), block_(block), shared_bytes_(shared_bytes) {}
  Shape& large() { return *this; }
  dim3 grid() const { return grid_; }
  dim3 block() const { return block_; }
  size_t shared_bytes() const { return shared_bytes_; }

 private:
  dim3 grid_;
  dim3 block_;
  size_t shared_bytes_;
};

// Takes the runtime's note of a failed call, so that the next one to ask, perhaps torch, does not find it.
inline int32_t status_of(const ds_exec* exec, hipError_t error) {
  if (error == hipSuccess) return DS_OK;
  explain(exec, hipGetErrorString(error));
  (void)hipGetLastError();
  return DS_DEVICE_ERROR;
}

inline hipStream_t stream_of(const ds_exec* exec) { return static_cast<hipStream_t>(exec->stream); }

template <typename... Parameters>
int32_t launch(const ds_exec* exec, const Shape& shape, void (*kernel)(Parameters...),
               std::common_type_t<Parameters>... arguments) {
  if (shape.grid().x == 0) return DS_OK;
  void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
  return status_of(exec, hipLaunchKernel(reinterpret_cast<const void*>(kernel), shape.grid(), shape.block(), addresses,
                                         shape.shared_bytes(), stream_of(exec)));
}

inline int32_t set_bytes(const ds_exec* exec, void* memory, int value, size_t bytes) {
  return bytes == 0 ? DS_OK : status_of(exec, hipMemsetAsync(memory, value, bytes, stream_of(exec)));
}

inline int32_t copy_bytes(const ds_exec* exec, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return DS_OK;
  return status_of(exec, hipMemcpyAsync(to, from, bytes, hipMemcpyDeviceToDevice, stream_of(exec)));
}

template <typename T>
DSK_DEVICE T* dynamic_shared() {
  extern __shared__ __attribute__((aligned(16))) unsigned char dsk_dynamic_shared[];
  return reinterpret_cast<T*>(dsk_dynamic_shared);
}

// sum + the products of the four signed bytes of a and b. Source: LLVM, user guide for the AMDGPU back end, for which
// processors have which instruction; others take them apart.
#if defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__) || defined(__gfx940__) || defined(__gfx941__) || \
    defined(__gfx942__) || defined(__gfx950__) || defined(__gfx1011__) || defined(__gfx1012__) ||                      \
    defined(__gfx1030__) || defined(__gfx1031__) || defined(__gfx1032__)
DSK_DEVICE int32_t dot4(int32_t a, int32_t b, int32_t sum) { return __builtin_amdgcn_sdot4(a, b, sum, false); }
#elif defined(__GFX11__) || defined(__GFX12__)
DSK_DEVICE int32_t dot4(int32_t a, int32_t b, int32_t sum) {
  return __builtin_amdgcn_sudot4(true, a, true, b, sum, false);
}
#else
DSK_DEVICE int32_t dot4(int32_t a, int32_t b, int32_t sum) {
  const auto byte = [](int32_t word, int place) {
    return static_cast<int32_t>(static_cast<int8_t>(word >> (8 * place)));
  };
  for (int i = 0; i < 4; ++i) sum += byte(a, i) * byte(b, i);
  return sum;
}
#endif

DSK_DEVICE void report_bad_index() { __builtin_trap(); }

}  // namespace dsk
