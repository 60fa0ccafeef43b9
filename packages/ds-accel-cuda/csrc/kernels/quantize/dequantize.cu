// dequantize: codes times the scale of their group, eight elements a thread.
#include "quantize/rows.h"
#include "quantize/scales.h"

namespace dsk {
using namespace quant;
namespace {

DSK_DEVICE float group_scale(const ds_dequantize_args& a, int64_t group) {
  if (a.scaling == DS_SCALING_POWER_OF_TWO) return e8m0_to_float(static_cast<const uint8_t*>(a.scales)[group]);
  return static_cast<const float*>(a.scales)[group];
}

template <class Format>
__global__ void __launch_bounds__(kThreads, 4) dequantize_eights(ds_dequantize_args a) {
  DSK_GRID_STRIDE(eight, ceil_div(a.numel, kVector)) {
    const int64_t first = eight * kVector;
    const int64_t n = a.numel - first;
    const uint8_t* q = static_cast<const uint8_t*>(a.q) + code_offset<Format::kBits>(first);
    const uint64_t codes = load_codes<Format::kBits>(q, n);
    int64_t group = first / a.group_size;
    int64_t left = (group + 1) * a.group_size - first;  // of the group
    float scale = group_scale(a, group);
    int32_t zero = a.scaling == DS_SCALING_ASYMMETRIC ? a.zeros[group] : 0;
    float x[kVector];
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (left == 0 && i < n) {
        left = a.group_size;
        scale = group_scale(a, ++group);
        zero = a.scaling == DS_SCALING_ASYMMETRIC ? a.zeros[group] : 0;
      }
      --left;
      x[i] = Format::decode(code_at<Format::kBits>(codes, i), zero) * scale;
    }
    store8(a.dtype, a.x, first, n, x);
  }
}

}  // namespace

int32_t dequantize(const void* arguments, const ds_exec* exec) {
  const ds_dequantize_args* a = static_cast<const ds_dequantize_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  return with_format(a->format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    if (a->group_size % codes_per_unit(Format::kBits) != 0) return DS_BAD_ARGUMENT;
    if (a->scaling == DS_SCALING_ASYMMETRIC ? !Format::kIsInteger || (a->zeros == nullptr && a->numel > 0)
                                            : a->scaling == DS_SCALING_POWER_OF_TWO && Format::kIsInteger) {
      return DS_BAD_ARGUMENT;
    }
    if (a->numel == 0) return DS_OK;
    const int64_t eights = ceil_div(a->numel, kVector);
    return launch(exec, team_shape(eights, 1), dequantize_eights<Format>, *a);
  });
}

}  // namespace dsk
