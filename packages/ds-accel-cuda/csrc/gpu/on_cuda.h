// CUDA behind gpu/gpu.h.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define DSK_DEVICE __device__ __forceinline__
#define DSK_HOST_DEVICE __host__ __device__ __forceinline__

#define DSK_SHARED(type, name, size) __shared__ type name size

namespace dsk {

using LaneMask = unsigned int;
constexpr int kWarp = 32;

inline int warp_width(const ds_exec*) { return kWarp; }

class Shape {
 public:
  Shape(dim3 grid, dim3 block, size_t shared_bytes = 0) : grid_(grid), block_(block), shared_bytes_(shared_bytes) {}
  Shape& large() {
    large_ = true;
    return *this;
  }
  dim3 grid() const { return grid_; }
  dim3 block() const { return block_; }
  size_t shared_bytes() const { return shared_bytes_; }
  bool is_large() const { return large_; }

 private:
  dim3 grid_;
  dim3 block_;
  size_t shared_bytes_;
  bool large_ = false;
};

// Takes the runtime's note of a failed call, so that the next one to ask, perhaps torch, does not find it.
inline int32_t status_of(const ds_exec* exec, cudaError_t error) {
  if (error == cudaSuccess) return DS_OK;
  explain(exec, cudaGetErrorString(error));
  (void)cudaGetLastError();
  return DS_DEVICE_ERROR;
}

inline cudaStream_t stream_of(const ds_exec* exec) { return static_cast<cudaStream_t>(exec->stream); }

template <typename... Parameters>
int32_t launch(const ds_exec* exec, const Shape& shape, void (*kernel)(Parameters...),
               std::common_type_t<Parameters>... arguments) {
  if (shape.grid().x == 0) return DS_OK;
  const void* const function = reinterpret_cast<const void*>(kernel);
  if (shape.is_large()) {
    const int bytes = static_cast<int>(shape.shared_bytes());
    const cudaError_t error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
    if (error != cudaSuccess) return status_of(exec, error);
  }
  void* addresses[] = {const_cast<void*>(static_cast<const void*>(&arguments))..., nullptr};
  return status_of(
      exec, cudaLaunchKernel(function, shape.grid(), shape.block(), addresses, shape.shared_bytes(), stream_of(exec)));
}

inline int32_t set_bytes(const ds_exec* exec, void* memory, int value, size_t bytes) {
  return bytes == 0 ? DS_OK : status_of(exec, cudaMemsetAsync(memory, value, bytes, stream_of(exec)));
}

inline int32_t copy_bytes(const ds_exec* exec, void* to, const void* from, size_t bytes) {
  if (bytes == 0) return DS_OK;
  return status_of(exec, cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_of(exec)));
}

template <typename T>
DSK_DEVICE T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char dsk_dynamic_shared[];
  return reinterpret_cast<T*>(dsk_dynamic_shared);
}

// sum + the products of the four signed bytes of a and b.
DSK_DEVICE int32_t dot4(int32_t a, int32_t b, int32_t sum) { return __dp4a(a, b, sum); }

// Stops the device, as a failed assertion does; the next call that waits for it reports that.
DSK_DEVICE void report_bad_index() { __trap(); }

}  // namespace dsk
