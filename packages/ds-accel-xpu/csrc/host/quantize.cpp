// quantize, dequantize, their use in collectives, and linear layers with quantized weights.
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

// Bytes of `count` codes, whole units.
int64_t packed_bytes(int32_t format, int64_t count) {
  const int64_t unit = codes_per_unit(format);
  return ceil_div(count, unit) * (unit == 4 ? 3 : 1);
}

bool groups_fit(int32_t format, int32_t scaling, int64_t group_size) {
  const int64_t unit = codes_per_unit(format);
  if (unit == 0 || group_size < 1 || group_size % unit != 0) return false;
  const bool integers = format == DS_FORMAT_INT8 || format == DS_FORMAT_INT4;
  return scaling == DS_SCALING_SYMMETRIC || scaling == (integers ? DS_SCALING_ASYMMETRIC : DS_SCALING_POWER_OF_TWO);
}

template <typename Arguments>
int32_t refusal(const Arguments* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  return groups_fit(a->format, a->scaling, a->group_size) ? DS_OK : DS_BAD_ARGUMENT;
}

// Work-items of a group: a power of two, so that each has a few elements.
int32_t lanes_for(int64_t group_size) {
  int32_t lanes = 1;
  while (lanes < kGroup && lanes * 4 < group_size) lanes *= 2;
  return lanes;
}

// One tensor, or one chunk of it, to codes.
int32_t quantize_run(const ds_exec* exec, const ds_quantize_args& a) {
  const int32_t lanes = lanes_for(a.group_size);
  return launch<kernels::quantize>(exec, ceil_div(ceil_div(a.numel, a.group_size), kGroup / lanes), a.dtype, a.format,
                                   a.scaling, lanes, a.numel, a.group_size, static_cast<int32_t>(a.rounding_seed >= 0),
                                   rounding_keys(a.rounding_seed, 0), a.rounding_offset, a.x, a.q, a.scales, a.zeros);
}

// The sum of the chunks of all ranks; arguments of the two ops begin alike.
template <typename Arguments>
int32_t reduce_run(const ds_exec* exec, const Arguments& a, int32_t dtype, void* y) {
  const auto unit = static_cast<int32_t>(codes_per_unit(a.format));
  return launch<kernels::quantized_reduce>(
      exec, groups_for(ceil_div(a.numel, unit)), dtype, a.format, a.scaling, a.average, unit, a.ranks, a.numel,
      a.group_size, packed_bytes(a.format, a.numel), ceil_div(a.numel, a.group_size), a.q, a.scales, a.zeros, y);
}

}  // namespace

int32_t quantize(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_quantize_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  return refused != DS_OK ? refused : quantize_run(exec, *a);
}

int32_t quantized_reduce(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_quantized_reduce_args*>(arguments);
  const int32_t refused = refusal(a, exec);
  if (refused != DS_OK || a->ranks < 1) return refused != DS_OK ? refused : DS_BAD_ARGUMENT;
  return reduce_run(exec, *a, a->dtype, a->y);
}

uint64_t quantized_reduce_quantize_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_quantized_reduce_quantize_args*>(arguments);
  return a->numel > 0 ? static_cast<uint64_t>(a->numel) * sizeof(float) : 0;
}

int32_t quantized_reduce_quantize(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_quantized_reduce_quantize_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->ranks < 1) return DS_BAD_ARGUMENT;
  if (!groups_fit(a->format, a->scaling, a->group_size)) return DS_BAD_ARGUMENT;
  if (!groups_fit(a->out_format, a->out_scaling, a->out_group_size)) return DS_BAD_ARGUMENT;
  if (exec->workspace_bytes < quantized_reduce_quantize_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const int32_t status = reduce_run(exec, *a, DS_F32, exec->workspace);
  if (status != DS_OK) return status;
  ds_quantize_args out = {};
  out.dtype = DS_F32;
  out.format = a->out_format;
  out.scaling = a->out_scaling;
  out.numel = a->numel;
  out.group_size = a->out_group_size;
  out.rounding_seed = a->rounding_seed;
  out.rounding_offset = a->rounding_offset;
  out.x = exec->workspace;
  out.q = a->out_q;
  out.scales = a->out_scales;
  out.zeros = a->out_zeros;
  return quantize_run(exec, out);
}

int32_t swizzle_quantize(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_swizzle_quantize_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->nodes < 1 || a->ranks_per_node < 1 || a->chunk < 0) {
    return DS_BAD_ARGUMENT;
  }
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  if (!groups_fit(a->format, a->scaling, a->group_size)) return DS_BAD_ARGUMENT;
  const int64_t groups = ceil_div(a->chunk, a->group_size);
  for (int64_t from = 0; from < a->nodes * a->ranks_per_node; ++from) {
    const int64_t to = from % a->ranks_per_node * a->nodes + from / a->ranks_per_node;
    ds_quantize_args one = {};
    one.dtype = a->dtype;
    one.format = a->format;
    one.scaling = a->scaling;
    one.numel = a->chunk;
    one.group_size = a->group_size;
    one.rounding_seed = a->rounding_seed;
    one.rounding_offset = a->rounding_offset + from * a->chunk;
    one.x = static_cast<const char*>(a->x) + from * a->chunk * (a->dtype == DS_F32 ? 4 : 2);
    one.q = static_cast<char*>(a->q) + to * packed_bytes(a->format, a->chunk);
    one.scales = static_cast<char*>(a->scales) + to * groups * (a->scaling == DS_SCALING_POWER_OF_TWO ? 1 : 4);
    one.zeros = a->scaling == DS_SCALING_ASYMMETRIC ? a->zeros + to * groups : nullptr;
    const int32_t status = quantize_run(exec, one);
    if (status != DS_OK) return status;
  }
  return DS_OK;
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

uint64_t linear_w8a8_workspace(const void* arguments) {
  const auto* a = static_cast<const ds_linear_args*>(arguments);
  if (a->rows <= 0 || a->inputs <= 0) return 0;
  return static_cast<uint64_t>(a->rows) * (sizeof(float) + static_cast<uint64_t>(a->inputs));
}

int32_t linear_w8a8(const void* arguments, const ds_exec* exec) {
  constexpr int64_t kTile = 16;                // rows and outputs of a work-group; csrc/kernels/matmul.cl says the same
  constexpr int64_t kMostInputs = 128 * 1024;  // of a group, so that its sum fits 32 bits
  const auto* a = static_cast<const ds_linear_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->inputs < 1 || a->outputs < 0 || a->group_size < 1 || a->format != 0) return DS_BAD_ARGUMENT;
  if (a->bits != 8 && a->bits != 4) return DS_BAD_ARGUMENT;
  if (a->group_size < a->inputs && a->group_size % 8 != 0) return DS_BAD_ARGUMENT;
  const int64_t group_size = a->group_size < a->inputs ? a->group_size : a->inputs;
  if (group_size > kMostInputs) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < linear_w8a8_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  auto* factors = static_cast<float*>(exec->workspace);
  ds_quantize_args rows = {};
  rows.dtype = a->dtype;
  rows.format = DS_FORMAT_INT8;
  rows.scaling = DS_SCALING_SYMMETRIC;
  rows.numel = a->rows * a->inputs;
  rows.group_size = a->inputs;
  rows.rounding_seed = -1;
  rows.x = a->x;
  rows.q = factors + a->rows;
  rows.scales = factors;
  const int32_t status = quantize_run(exec, rows);
  if (status != DS_OK) return status;
  return launch<kernels::linear_w8a8>(exec, ceil_div(a->outputs, kTile) * ceil_div(a->rows, kTile), a->dtype, a->bits,
                                      a->rows, a->inputs, a->outputs, group_size, rows.q, factors, a->codes, a->scales,
                                      a->zeros, a->bias, a->y);
}

}  // namespace dsk
