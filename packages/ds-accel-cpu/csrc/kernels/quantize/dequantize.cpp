// dequantize: codes times the scale of their group.
#include "quantize/groups.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

float scale_of(const ds_dequantize_args& a, int64_t group) {
  if (a.scaling == DS_SCALING_POWER_OF_TWO) return e8m0_to_float(static_cast<const uint8_t*>(a.scales)[group]);
  return static_cast<const float*>(a.scales)[group];
}

// Elements [start, start + n), which begin at a whole unit of packing and lie in groups from `first` on.
template <class Format>
void run_chunk(const ds_dequantize_args& a, int64_t first, int64_t start, int64_t n) {
  alignas(64) float buffer[kBlock];
  alignas(64) uint8_t codes[kBlock + 4];
  constexpr int kUnit = codes_per_unit(Format::kBits);
  unpack_codes<Format::kBits>(static_cast<const uint8_t*>(a.q) + start / kUnit * unit_bytes(Format::kBits), n, codes);
  int64_t group = first;
  for (int64_t i = 0; i < n; ++group) {
    const int64_t end = min64(n, (group + 1) * a.group_size - start);
    const float scale = scale_of(a, group);
    const int32_t zero = a.scaling == DS_SCALING_ASYMMETRIC ? a.zeros[group] : 0;
    for (; i < end; ++i) buffer[i] = Format::decode(codes[i], zero) * scale;
  }
  store_block(a.dtype, buffer, at(a.x, start, element_bytes(a.dtype)), n);
}

template <class Format>
bool run(const ds_dequantize_args& a, const ds_exec* exec) {
  if (a.group_size % codes_per_unit(Format::kBits) != 0) return false;
  if (a.scaling == DS_SCALING_ASYMMETRIC ? !Format::kIsInteger || (a.zeros == nullptr && a.numel > 0)
                                         : a.scaling == DS_SCALING_POWER_OF_TWO && Format::kIsInteger) {
    return false;
  }
  for_group_runs(exec, a.numel, a.group_size, [&](int64_t first, int64_t last) {
    const int64_t begin = first * a.group_size;
    const int64_t count = min64(last * a.group_size, a.numel) - begin;
    for_blocks(count, [&](int64_t offset, int64_t n) { run_chunk<Format>(a, first, begin + offset, n); });
  });
  return true;
}

}  // namespace

int32_t dequantize(const void* arguments, const ds_exec* exec) {
  const ds_dequantize_args* a = static_cast<const ds_dequantize_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const bool done = with_format(a->format, [&](auto format) { return run<decltype(format)>(*a, exec); });
  return done ? DS_OK : DS_BAD_ARGUMENT;
}

}  // namespace dsk
