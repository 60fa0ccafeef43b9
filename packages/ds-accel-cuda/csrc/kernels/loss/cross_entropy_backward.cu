// cross_entropy_backward: gradients of the losses with respect to the logits.
//
// Memory traffic: logits read and dlogits written once, 1.0 times the minimum.
#include "loss/cross_entropy.h"
#include "loss/rows.h"

namespace dsk {
namespace {

template <typename T>
__global__ void __launch_bounds__(kThreads)
    cross_entropy_backward_kernel(ds_cross_entropy_backward_args a, LossOptions o, PackGrid grid, bool vector) {
  DSK_GRID_STRIDE(number, grid.count) {
    const int64_t row = quotient(number, grid.per_row);
    const int64_t column = (number - row * grid.per_row) * RowPack<T>::kSize;
    const int64_t target = a.target[row];
    if (target_kind(o, target) == Target::kBad) {
      report_bad_index();
      return;
    }
    RowPack<T> logits[1];
    load_packs(static_cast<const T*>(a.logits) + row * a.columns, column, 0, a.columns, vector, logits);
    const RowSlope slope = row_slope(o, target, a.lse[row], a.dlosses[row]);
    store_pack(gradient_pack(slope, column, logits[0]), static_cast<T*>(a.dlogits) + row * a.columns, column, a.columns,
               vector);
  }
}

}  // namespace

int32_t cross_entropy_backward(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_backward_args* a = static_cast<const ds_cross_entropy_backward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const PackGrid grid = pack_grid<T>(a->rows, a->columns);
    const bool vector = whole_packs<T>(a->columns, a->logits, a->dlogits);
    return launch(exec, Shape(blocks_for(grid.count, kThreads), kThreads), cross_entropy_backward_kernel<T>, *a,
                  loss_options(*a), grid, vector);
  });
}

}  // namespace dsk
