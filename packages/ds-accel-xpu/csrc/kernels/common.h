// What the kernels share: elements of a tensor as float32 and back, rounding, and sums over a work-group.
//
// Note [OpenCL kernels]
// C++ for OpenCL 2021, compiled to SPIR-V when the wheel is built; the driver of the device compiles that at first use.
// No kernel needs float64 or float16 arithmetic, sub-groups or atomics, so every SYCL device runs them. Numbers are as
// on the CPU: no contraction, fma where the CPU kernels write it, and division and square root that round correctly on
// devices whose own do not (exact.h). Branches on a dtype are uniform over the launch, so they cost next to nothing.
#ifndef DSK_XPU_COMMON_H
#define DSK_XPU_COMMON_H

#pragma OPENCL FP_CONTRACT OFF

#define kGroup 256 /* work-items of a work-group; csrc/host/launch.h says the same */

enum { kNone = 0, kF32 = 1, kBF16 = 2, kF16 = 3 }; /* enum ds_dtype of ds_kernel.h */

typedef const global void* Source;
typedef global void* Target;

static inline ushort bf16_of(float x) {
  const uint bits = as_uint(x);
  const uint rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return (ushort)((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}

// Element i as float32.
static inline float load(int dtype, Source base, long i) {
  if (dtype == kF32) return ((const global float*)base)[i];
  if (dtype == kBF16) return as_float((uint)((const global ushort*)base)[i] << 16);
  return vload_half((size_t)i, (const global half*)base);
}

// float32 rounded to nearest even into element i.
static inline void store(int dtype, Target base, long i, float x) {
  if (dtype == kF32) {
    ((global float*)base)[i] = x;
  } else if (dtype == kBF16) {
    ((global ushort*)base)[i] = bf16_of(x);
  } else {
    vstore_half_rte(x, (size_t)i, (global half*)base);
  }
}

// x as it comes back from a tensor of this dtype.
static inline float rounded(int dtype, float x) {
  if (dtype == kF32) return x;
  if (dtype == kBF16) return as_float((uint)bf16_of(x) << 16);
  ushort bits;
  vstore_half_rte(x, 0, (half*)&bits);
  return vload_half(0, (const half*)&bits);
}

static inline long item() { return (long)get_group_id(0) * kGroup + (long)get_local_id(0); }
static inline long items() { return (long)get_num_groups(0) * kGroup; }

// Sum over the work-group, the same for all of it: items 128 apart, then 64, down to neighbours.
static inline float group_sum(float value, local float* scratch) {
  const uint here = (uint)get_local_id(0);
  barrier(CLK_LOCAL_MEM_FENCE);  // the last readers of scratch are done
  scratch[here] = value;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint width = kGroup / 2; width > 0; width /= 2) {
    if (here < width) scratch[here] += scratch[here + width];
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return scratch[0];
}

// The larger one; NaN if one is NaN.
static inline float larger(float a, float b) { return b > a || b != b ? b : a; }

static inline float group_max(float value, local float* scratch) {
  const uint here = (uint)get_local_id(0);
  barrier(CLK_LOCAL_MEM_FENCE);
  scratch[here] = value;
  barrier(CLK_LOCAL_MEM_FENCE);
  for (uint width = kGroup / 2; width > 0; width /= 2) {
    if (here < width) scratch[here] = larger(scratch[here], scratch[here + width]);
    barrier(CLK_LOCAL_MEM_FENCE);
  }
  return scratch[0];
}

// Whether a value of an index names one of `rows` rows. One that does not was, or will be, reported by check_index.
static inline bool exists(long value, long rows) { return (ulong)value < (ulong)rows; }

// What is written for a row that an index misnames: NaN in every dtype of floats.
#define kBad as_float(0xffffffffu)

#endif
