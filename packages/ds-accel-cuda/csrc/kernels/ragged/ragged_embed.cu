// ragged_embed: eight columns of a token a thread.
#include "gpu/gpu.h"
#include "ragged/rows.h"
#include "vectors.h"

namespace dsk {
namespace {

// Adds a row of a table; false if there is no such row.
template <typename T>
DSK_DEVICE bool add_row(const void* table, int64_t row, int64_t rows, int64_t columns, int64_t first,
                        float (&sum)[kVector]) {
  if (row < 0 || row >= rows) {
    report_bad_index();
    return false;
  }
  float x[kVector];
  load8(static_cast<const T*>(table) + row * columns + first, columns - first, x);
#pragma unroll
  for (int i = 0; i < kVector; ++i) sum[i] += x[i];
  return true;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) embed_kernel(ds_ragged_embed_args a, int64_t eights) {
  DSK_GRID_STRIDE(i, a.tokens * eights) {
    const int64_t token = i / eights;
    const int64_t first = i % eights * kVector;
    const int64_t row = a.token[token];
    if (row < 0 || row >= a.vocabulary) {
      report_bad_index();
      return;
    }
    float sum[kVector];
    load8(static_cast<const T*>(a.weight) + row * a.columns + first, a.columns - first, sum);
    if (a.position != nullptr &&
        !add_row<T>(a.position_weight, a.position[token], a.positions, a.columns, first, sum)) {
      return;
    }
    if (a.type != nullptr && !add_row<T>(a.type_weight, a.type[token], a.types, a.columns, first, sum)) return;
    store8(static_cast<T*>(a.y) + token * a.columns + first, a.columns - first, sum);
  }
}

}  // namespace

int32_t ragged_embed(const void* arguments, const ds_exec* exec) {
  const ds_ragged_embed_args* a = static_cast<const ds_ragged_embed_args*>(arguments);
  if (!is_valid(a, exec) || a->tokens < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  // Rows without columns are looked at too: their indices may be wrong.
  const int64_t eights = max64(ceil_div(a->columns, kVector), 1);
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const int64_t threads = a->tokens * eights;
    const int block = threads > 128 ? kThreads : 64;
    return launch(exec, Shape(blocks_for(threads, block), block), embed_kernel<T>, *a, eights);
  });
}

}  // namespace dsk
