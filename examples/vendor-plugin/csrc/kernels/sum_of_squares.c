/* The op sum_of_squares, and the one symbol of this library: what a vendor's kernels look like to ds-core.
 *
 * Nothing of torch is included, so the library serves every release of it. A real device launches on exec->stream;
 * this one's memory can be read by the host, so the kernel is a loop.
 */
#include <string.h>

#include "ds_kernel.h"

enum { RUN = 64 }; /* elements that are added one after the other; runs are added in pairs, so errors stay small */

static float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

static float from_half(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  const float scaled = from_bits(magnitude << 13) * 0x1p112f; /* exact, for subnormal numbers too */
  return sign ? -scaled : scaled;
}

static double element(const ds_sum_of_squares_args* a, int64_t at) {
  if (a->dtype == DS_F32) return ((const float*)a->x)[at];
  const uint16_t bits = ((const uint16_t*)a->x)[at];
  return a->dtype == DS_BF16 ? from_bits((uint32_t)bits << 16) : from_half(bits);
}

static double add_up(const ds_sum_of_squares_args* a, int64_t first, int64_t count) {
  if (count > RUN) return add_up(a, first, count / 2) + add_up(a, first + count / 2, count - count / 2);
  double total = 0.0;
  for (int64_t at = first; at < first + count; ++at) {
    const double value = element(a, at);
    total += value * value;
  }
  return total;
}

static int32_t sum_of_squares(const void* arguments, const ds_exec* exec) {
  const ds_sum_of_squares_args* a = (const ds_sum_of_squares_args*)arguments;
  (void)exec;
  if (a->struct_size < sizeof *a || a->numel < 0 || (a->numel && !a->x) || !a->out) return DS_BAD_ARGUMENT;
  if (a->dtype != DS_F32 && a->dtype != DS_BF16 && a->dtype != DS_F16) return DS_UNSUPPORTED_DTYPE;
  *a->out = add_up(a, 0, a->numel);
  return DS_OK;
}

static const ds_kernel_entry kEntries[] = {
    {"sum_of_squares", 1, DS_KERNEL_FLAG_DETERMINISTIC, sum_of_squares, NULL},
};

static const ds_kernel_library kLibrary = {
    DS_KERNEL_MAGIC,
    DS_KERNEL_ABI_MAJOR,
    DS_KERNEL_ABI_MINOR,
    sizeof(ds_kernel_library),
    sizeof(ds_kernel_entry),
    sizeof kEntries / sizeof kEntries[0],
    0,
    "openbox",
    "C11",
    kEntries,
};

DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void);
DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &kLibrary; }
