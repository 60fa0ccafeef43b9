// Tiny kernels for the tests of the emulation: some are right, most have a fault on purpose, one each.
#include <cstring>
#include <initializer_list>

#include "gpu/gpu.h"

namespace dsk {
namespace {

constexpr int kBlock = 128;
constexpr LaneMask kLowHalf = kAllLanes >> (kWarp / 2);

// --- right ----------------------------------------------------------------------------------------------------------

__global__ void neighbour(const float* x, float* out) {
  DSK_SHARED(float, tile, [kBlock]);
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = x[thread];
  __syncthreads();
  out[thread] = tile[(thread + 1) % kBlock];
}

// Each half of a warp synchronizes by itself, in a branch of its own.
__global__ void half_warps(const float* x, float* out) {
  const int lane = lane_of_thread();
  const float value = x[threadIdx.x];
  if (lane < kWarp / 2) {
    out[threadIdx.x] = __shfl_xor_sync(kLowHalf, value, 1);
  } else {
    out[threadIdx.x] = __shfl_xor_sync(static_cast<LaneMask>(~kLowHalf), value, 2);
  }
}

// What each vote and each shuffle gives, in rows of a block.
__global__ void votes_and_shuffles(float* out) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_of_thread();
  const float value = static_cast<float>(thread);
  const auto put = [&](int row, double result) { out[row * kBlock + thread] = static_cast<float>(result); };
  put(0, __shfl_sync(kAllLanes, value, 3));
  put(1, __shfl_up_sync(kAllLanes, value, 2));
  put(2, __shfl_down_sync(kAllLanes, value, 2, 8));
  put(3, __shfl_xor_sync(kAllLanes, value, 5));
  put(4, __popcll(__ballot_sync(kAllLanes, lane % 3 == 0)));
  put(5, __any_sync(kAllLanes, thread == kWarp + 1));
  put(6, __all_sync(kAllLanes, thread != kWarp + 1));
  put(7, __syncthreads_count(thread < 100));
  put(8, __syncthreads_and(thread < 127));
  put(9, __syncthreads_or(thread == 127));
  put(10, block_sum(1.0f / (1.0f + value)));
}

__global__ void count_atomically(float* out) {
  int* const words = reinterpret_cast<int*>(out);
  const int thread = static_cast<int>(threadIdx.x);
  atomicAdd(&words[0], thread);
  atomicMax(&words[1], static_cast<int>(blockIdx.x) * kBlock + thread);
  atomicOr(&words[2], 1 << (thread % 8));
  atomicCAS(&words[3], 0, 7);
}

__global__ void whole_place(float* out) {
  const int64_t block = blockIdx.x + static_cast<int64_t>(gridDim.x) * (blockIdx.y + gridDim.y * blockIdx.z);
  const int64_t thread = threadIdx.x + static_cast<int64_t>(blockDim.x) * (threadIdx.y + blockDim.y * threadIdx.z);
  out[block * 64 + thread] = static_cast<float>(block * 64 + thread);
}

// --- races ----------------------------------------------------------------------------------------------------------

__global__ void neighbour_without_barrier(const float* x, float* out) {
  DSK_SHARED(float, tile, [kBlock]);
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = x[thread];
  out[thread] = tile[(thread + 1) % kBlock];
}

__global__ void neighbour_overwritten(const float* x, float* out) {
  DSK_SHARED(float, tile, [kBlock]);
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = x[thread];
  __syncthreads();
  const float next = tile[(thread + 1) % kBlock];
  tile[thread] = -1.0f;  // a barrier is missing before this
  out[thread] = next;
}

__global__ void warp_without_syncwarp(const float* x, float* out) {
  DSK_SHARED(float, tile, [kBlock]);
  const int thread = static_cast<int>(threadIdx.x);
  tile[thread] = x[thread];
  out[thread] = tile[thread ^ 1];
}

__global__ void block_after_block(const float* x, float* out) {
  const int block = static_cast<int>(blockIdx.x);
  if (threadIdx.x == 0) out[block] = x[block] + (block > 0 ? out[block - 1] : 0.0f);
}

__global__ void sum_by_atomics(const float* x, float* out) { atomicAdd(out, x[blockIdx.x * kBlock + threadIdx.x]); }

// --- what a device would hang on, or leave undefined ----------------------------------------------------------------

__global__ void barrier_in_a_branch(float* out) {
  if (threadIdx.x < 96) __syncthreads();
  out[threadIdx.x] = 1.0f;
}

__global__ void barriers_of_two_branches(float* out) {
  if (threadIdx.x < 64) {
    __syncthreads();
    out[threadIdx.x] = 1.0f;
  } else {
    __syncthreads();
    out[threadIdx.x] = 2.0f;
  }
}

__global__ void shuffle_after_return(float* out) {
  if (lane_of_thread() >= kWarp / 2) return;
  out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
}

__global__ void shuffle_in_a_branch(float* out) {
  if (lane_of_thread() < kWarp / 2) out[threadIdx.x] = __shfl_xor_sync(kAllLanes, 1.0f, 1);
  __syncthreads();
}

__global__ void mask_without_self(float* out) {
  out[threadIdx.x] = __shfl_sync(lane_of_thread() == 5 ? LaneMask{1} : kAllLanes, 1.0f, 0);
}

__global__ void masks_that_differ(float* out) {
  const LaneMask mask = lane_of_thread() == 0 ? kLowHalf : kAllLanes;
  out[threadIdx.x] = __shfl_sync(mask, 1.0f, 0);
}

__global__ void source_outside_of_mask(float* out) {
  if (lane_of_thread() < kWarp / 2) out[threadIdx.x] = __shfl_sync(kLowHalf, 1.0f, kWarp - 1);
}

__global__ void read_of_nothing(float* out) {
  DSK_SHARED(float, tile, [kBlock]);
  DSK_SHARED(bfloat16, narrow, [kBlock]);
  out[threadIdx.x] = tile[threadIdx.x];
  out[kBlock + threadIdx.x] = to_float(narrow[threadIdx.x]);
  out[2 * kBlock + threadIdx.x] = dynamic_shared<float>()[threadIdx.x];
}

template <int kBytes>
__global__ void much_shared(float* out) {
  DSK_SHARED(unsigned char, tile, [kBytes]);
  tile[threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void index_out_of_range(const float* x, float* out) {
  if (x[threadIdx.x] >= kBlock - 1) {
    report_bad_index();
    return;
  }
  out[threadIdx.x] = 1.0f;
}

// --- memory that is not there ---------------------------------------------------------------------------------------

__global__ void beyond_shared(float* out, int offset) {
  DSK_SHARED(float, tile, [kBlock]);
  tile[(static_cast<int>(threadIdx.x) + offset)] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void beyond_dynamic_shared(float* out, int offset) {
  float* const tile = dynamic_shared<float>();
  tile[static_cast<int>(threadIdx.x) + offset] = 1.0f;
  out[threadIdx.x] = tile[threadIdx.x];
}

__global__ void beyond_global(float* out, int64_t offset) { out[threadIdx.x + offset] = 1.0f; }

// --- by name --------------------------------------------------------------------------------------------------------

int32_t run_right(const char* name, const float* x, float* out, const ds_exec* exec) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("neighbour")) return launch(exec, Shape(4, kBlock), neighbour, x, out);
  if (is("half_warps")) return launch(exec, Shape(1, kBlock), half_warps, x, out);
  if (is("votes_and_shuffles")) return launch(exec, Shape(1, kBlock), votes_and_shuffles, out);
  if (is("count_atomically")) return launch(exec, Shape(50, kBlock), count_atomically, out);
  if (is("whole_place")) return launch(exec, Shape(dim3(3, 2, 2), dim3(4, 4, 4)), whole_place, out);
  return -1;
}

int32_t run_race(const char* name, const float* x, float* out, const ds_exec* exec) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  if (is("neighbour_without_barrier")) return launch(exec, Shape(1, kBlock), neighbour_without_barrier, x, out);
  if (is("neighbour_overwritten")) return launch(exec, Shape(1, kBlock), neighbour_overwritten, x, out);
  if (is("warp_without_syncwarp")) return launch(exec, Shape(1, kBlock), warp_without_syncwarp, x, out);
  if (is("block_after_block")) return launch(exec, Shape(64, 64), block_after_block, x, out);
  if (is("sum_by_atomics")) return launch(exec, Shape(8, kBlock), sum_by_atomics, x, out);
  return -1;
}

int32_t run_fault(const char* name, const float* x, float* out, const ds_exec* exec) {
  const auto is = [name](const char* other) { return std::strcmp(name, other) == 0; };
  const Shape one(1, kBlock);
  if (is("barrier_in_a_branch")) return launch(exec, one, barrier_in_a_branch, out);
  if (is("barriers_of_two_branches")) return launch(exec, one, barriers_of_two_branches, out);
  if (is("shuffle_after_return")) return launch(exec, one, shuffle_after_return, out);
  if (is("shuffle_in_a_branch")) return launch(exec, one, shuffle_in_a_branch, out);
  if (is("mask_without_self")) return launch(exec, one, mask_without_self, out);
  if (is("masks_that_differ")) return launch(exec, one, masks_that_differ, out);
  if (is("source_outside_of_mask")) return launch(exec, one, source_outside_of_mask, out);
  if (is("half_a_warp")) return launch(exec, Shape(1, 48), votes_and_shuffles, out);
  if (is("read_of_nothing")) return launch(exec, Shape(1, kBlock, 4 * kBlock), read_of_nothing, out);
  if (is("much_static_shared")) return launch(exec, Shape(1, kBlock, 1024), much_shared<48 * 1024>, out);
  if (is("much_dynamic_shared")) return launch(exec, Shape(1, kBlock, 49 * 1024), neighbour, x, out);
  if (is("large_shared")) return launch(exec, Shape(1, kBlock, 49 * 1024).large(), neighbour, x, out);
  if (is("many_threads")) return launch(exec, Shape(1, 1088), neighbour, x, out);
  if (is("many_blocks")) return launch(exec, Shape(dim3(1, 65536), kBlock), neighbour, x, out);
  if (is("index_out_of_range")) return launch(exec, one, index_out_of_range, x, out);
  if (is("beyond_shared")) return launch(exec, one, beyond_shared, out, 1);
  if (is("beyond_dynamic_shared")) return launch(exec, Shape(1, kBlock, 4 * kBlock), beyond_dynamic_shared, out, 1);
  if (is("beyond_global")) return launch(exec, one, beyond_global, out, int64_t{1});
  return -1;
}

}  // namespace
}  // namespace dsk

// Runs the kernel called `name`; -1 if there is none.
extern "C" DS_KERNEL_EXPORT int32_t dsk_emulation_fault(const char* name, const float* x, float* out,
                                                        const ds_exec* exec) {
  for (const auto run : {dsk::run_right, dsk::run_race, dsk::run_fault}) {
    const int32_t status = run(name, x, out, exec);
    if (status >= 0) return status;
  }
  return -1;
}
