// Launch sizes, what a thread owns of a flat tensor, dispatch over dtypes, and checks of arguments.
#pragma once

namespace dsk {

constexpr int kThreads = 256;             // of a block, where nothing speaks for another number
constexpr int64_t kMostBlocks = 1 << 14;  // of a grid whose threads walk; enough to fill any device
constexpr LaneMask kAllLanes = static_cast<LaneMask>(~LaneMask{0});

DSK_HOST_DEVICE int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
DSK_HOST_DEVICE int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }
DSK_HOST_DEVICE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of a grid whose blocks walk over `count` items, `per_block` at a time; 0 for no items.
inline unsigned blocks_for(int64_t count, int64_t per_block) {
  return static_cast<unsigned>(min64(ceil_div(max64(count, 0), per_block), kMostBlocks));
}

// This thread's number in a one-dimensional grid, and how many there are.
DSK_DEVICE int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }
DSK_DEVICE int64_t global_threads() { return static_cast<int64_t>(gridDim.x) * blockDim.x; }

// for each item of [0, count) that is this thread's.
#define DSK_GRID_STRIDE(i, count) \
  for (int64_t i = ::dsk::global_thread(), i##_step = ::dsk::global_threads(); i < (count); i += i##_step)

// Lane and warp of a thread in a block whose threads are counted by x alone.
DSK_DEVICE int lane_of_thread() { return static_cast<int>(threadIdx.x) % kWarp; }
DSK_DEVICE int warp_of_thread() { return static_cast<int>(threadIdx.x) / kWarp; }

// N elements that are read or written at once; the address is a multiple of the whole.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T values[N];
};

// Whether every address is a multiple of `bytes`, a power of two; NULL is.
template <typename... Pointers>
DSK_HOST_DEVICE bool all_aligned(uintptr_t bytes, Pointers... pointers) {
  return (((reinterpret_cast<uintptr_t>(pointers) & (bytes - 1)) == 0) && ...);
}

template <typename T>
struct Type {
  using type = T;
};

inline bool is_float(int32_t dtype) { return dtype == DS_F32 || dtype == DS_BF16 || dtype == DS_F16; }

// Returns body(Type<T>{}) with the T of a dtype code.
template <typename Body>
int32_t with_float_type(int32_t dtype, const Body& body) {
  switch (dtype) {
    case DS_F32:
      return body(Type<float>{});
    case DS_BF16:
      return body(Type<bfloat16>{});
    case DS_F16:
      return body(Type<float16>{});
    default:
      return DS_UNSUPPORTED_DTYPE;
  }
}

// Whether the caller's struct and context have all the fields that this library reads.
template <typename Args>
bool is_valid(const Args* a, const ds_exec* exec) {
  return exec != nullptr && exec->struct_size >= DS_EXEC_SIZE_1_0 && a->struct_size >= sizeof(Args);
}

}  // namespace dsk
