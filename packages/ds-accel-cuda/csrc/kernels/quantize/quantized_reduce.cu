// quantized_reduce: eight elements of all ranks' chunks a thread.
#include "quantize/chunks.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

template <class Format>
__global__ void __launch_bounds__(kThreads) reduce_eights(Chunks c, int32_t dtype, void* y) {
  DSK_GRID_STRIDE(eight, ceil_div(c.numel, kVector)) {
    const int64_t first = eight * kVector;
    float sum[kVector];
    sum8(Known<Format>(), c, first, c.numel - first, sum);
    store8(dtype, y, first, c.numel - first, sum);
  }
}

}  // namespace

int32_t quantized_reduce(const void* arguments, const ds_exec* exec) {
  const ds_quantized_reduce_args* a = static_cast<const ds_quantized_reduce_args*>(arguments);
  if (!is_valid(a, exec)) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  return with_format(a->format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    if (!are_chunks<Format>(*a)) return DS_BAD_ARGUMENT;
    return launch(exec, team_shape(ceil_div(a->numel, kVector), 1), reduce_eights<Format>, chunks_of(*a, Format::kBits),
                  a->dtype, a->y);
  });
}

}  // namespace dsk
