// swizzle_quantize: a team a group, in the order of the result.
#include "quantize/groups.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

struct Swizzled {
  const void* x;
  int32_t dtype;
  int64_t nodes;
  int64_t ranks_per_node;
  int64_t chunk;
  int64_t chunk_bytes;  // of codes
  int64_t group_size;
  int64_t groups;  // of a chunk

  template <int kBits>
  DSK_DEVICE Place place(int64_t group) const {
    const int64_t row = group / groups;  // rank of a node * nodes + node
    const int64_t inside = group % groups * group_size;
    const int64_t from = row % nodes * ranks_per_node + row / nodes;
    const int64_t first = from * chunk + inside;
    return {first, min64(group_size, chunk - inside), row * chunk_bytes + code_offset<kBits>(inside), first};
  }
  DSK_DEVICE void load8(int64_t first, int64_t n, float (&values)[kVector]) const {
    dsk::load8(dtype, x, first, n, values);
  }
};

}  // namespace

int32_t swizzle_quantize(const void* arguments, const ds_exec* exec) {
  const ds_swizzle_quantize_args* a = static_cast<const ds_swizzle_quantize_args*>(arguments);
  if (!is_valid(a, exec) || a->nodes < 1 || a->ranks_per_node < 1 || a->chunk < 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  int64_t bytes = 0;
  const int32_t status = with_format(a->format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    bytes = ceil_div(a->chunk, codes_per_unit(Format::kBits)) * unit_bytes(Format::kBits);
    return is_served<Format>(a->scaling, a->group_size) ? DS_OK : DS_BAD_ARGUMENT;
  });
  if (status != DS_OK || a->chunk == 0) return status;
  const int64_t groups = ceil_div(a->chunk, a->group_size);
  const Swizzled source = {a->x, a->dtype, a->nodes, a->ranks_per_node, a->chunk, bytes, a->group_size, groups};
  const Output out = {static_cast<uint8_t*>(a->q), a->scales, a->zeros, a->scaling};
  const Rounding rounding = make_rounding(a->rounding_seed, a->rounding_offset, 0);
  return quantize_all(source, out, a->format, rounding, min64(a->group_size, a->chunk),
                      groups * a->nodes * a->ranks_per_node, exec);
}

}  // namespace dsk
