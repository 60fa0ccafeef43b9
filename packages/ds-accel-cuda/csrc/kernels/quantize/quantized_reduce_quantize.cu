// quantized_reduce_quantize: a team a group of the result, which adds up the ranks' chunks and encodes what it has.
#include "quantize/chunks.h"
#include "quantize/groups.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

struct Sums {
  Chunks chunks;
  int64_t group_size;  // of the result

  template <int kBits>
  DSK_DEVICE Place place(int64_t group) const {
    const int64_t first = group * group_size;
    return {first, min64(group_size, chunks.numel - first), code_offset<kBits>(first), first};
  }
  DSK_DEVICE void load8(int64_t first, int64_t n, float (&x)[kVector]) const { sum8(chunks, first, n, x); }
};

}  // namespace

int32_t quantized_reduce_quantize(const void* arguments, const ds_exec* exec) {
  const ds_quantized_reduce_quantize_args* a = static_cast<const ds_quantized_reduce_quantize_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  int bits = 0;
  int32_t status = with_format(a->format, [&](auto tag) -> int32_t {
    bits = decltype(tag)::kBits;
    return are_chunks<decltype(tag)>(*a) ? DS_OK : DS_BAD_ARGUMENT;
  });
  if (status != DS_OK) return status;
  status = with_format(a->out_format, [&](auto tag) -> int32_t {
    return is_served<decltype(tag)>(a->out_scaling, a->out_group_size) ? DS_OK : DS_BAD_ARGUMENT;
  });
  if (status != DS_OK) return status;
  if (a->out_group_size % codes_per_unit(bits) != 0) return DS_BAD_ARGUMENT;  // groups begin where codes can be read
  if (a->numel == 0) return DS_OK;
  const Sums sums = {chunks_of(*a, bits), a->out_group_size};
  const Output out = {static_cast<uint8_t*>(a->out_q), a->out_scales, a->out_zeros, a->out_scaling};
  const Rounding rounding = make_rounding(a->rounding_seed, a->rounding_offset, 0);
  return quantize_all(sums, out, a->out_format, rounding, min64(a->out_group_size, a->numel),
                      ceil_div(a->numel, a->out_group_size), exec);
}

}  // namespace dsk
