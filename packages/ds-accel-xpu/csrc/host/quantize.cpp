// quantize, dequantize and linear_weight_only.
#include "rows.h"

namespace dsk {
namespace {

// Codes in a whole number of bytes; 0 if there is no such format.
int64_t codes_per_unit(int32_t format) {
  switch (format) {
    case DS_FORMAT_INT8:
    case DS_FORMAT_E4M3FN:
    case DS_FORMAT_E5M2:
      return 1;
    case DS_FORMAT_INT4:
    case DS_FORMAT_E2M1:
      return 2;
    case DS_FORMAT_E3M2:
    case DS_FORMAT_E2M3:
      return 4;
    default:
      return 0;
  }
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const int64_t unit = codes_per_unit(a->format);
  if (unit == 0 || a->group_size % unit != 0) return DS_BAD_ARGUMENT;
  const bool integers = a->format == DS_FORMAT_INT8 || a->format == DS_FORMAT_INT4;
  if (a->scaling == DS_SCALING_SYMMETRIC) return DS_OK;
  return a->scaling == (integers ? DS_SCALING_ASYMMETRIC : DS_SCALING_POWER_OF_TWO) ? DS_OK : DS_BAD_ARGUMENT;
}

// Work-items of a group: a power of two, so that each has a few elements.
int32_t lanes_for(int64_t group_size) {
  int32_t lanes = 1;
  while (lanes < kGroup && lanes * 4 < group_size) lanes *= 2;
  return lanes;
}

}  // namespace

int32_t quantize(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_quantize_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  const int32_t lanes = lanes_for(a->group_size);
  return launch<kernels::quantize>(exec, ceil_div(ceil_div(a->numel, a->group_size), kGroup / lanes), a->dtype,
                                   a->format, a->scaling, lanes, a->numel, a->group_size,
                                   static_cast<int32_t>(a->rounding_seed >= 0), rounding_keys(a->rounding_seed, 0),
                                   a->rounding_offset, a->x, a->q, a->scales, a->zeros);
}

int32_t dequantize(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_dequantize_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK) return refused;
  return launch<kernels::dequantize>(exec, groups_for(ceil_div(a->numel, codes_per_unit(a->format))), a->dtype,
                                     a->format, a->scaling, a->numel, a->group_size, a->q, a->scales, a->zeros, a->x);
}

int32_t linear_weight_only(const void* arguments, const ds_exec* exec) {
  constexpr int64_t kOutputs = 16;  // of a work-group, as its rows; csrc/kernels/matmul.cl says the same
  constexpr int64_t kRows = 8;
  const auto* a = static_cast<const ds_linear_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->inputs < 1 || a->outputs < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  const int32_t float_bits = a->format == DS_FORMAT_E4M3FN || a->format == DS_FORMAT_E5M2 ? 8
                             : a->format == DS_FORMAT_E3M2 || a->format == DS_FORMAT_E2M3 ? 6
                             : a->format == DS_FORMAT_E2M1                                ? 4
                                                                                          : 0;
  if (a->format == 0 ? a->bits != 8 && a->bits != 4 : a->bits != float_bits) return DS_BAD_ARGUMENT;
  if (a->group_size < a->inputs && a->group_size % 8 != 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  return launch<kernels::linear_weight_only>(exec, ceil_div(a->outputs, kOutputs) * ceil_div(a->rows, kRows), a->dtype,
                                             a->bits, a->format, a->rows, a->inputs, a->outputs, a->group_size, a->x,
                                             a->codes, a->scales, a->zeros, a->bias, a->y);
}

}  // namespace dsk
