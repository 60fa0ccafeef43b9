// cross_entropy_forward: losses of rows of logits against their classes.
//
// Memory traffic: logits read once, 1.0 times the minimum.
#include "loss/cross_entropy.h"
#include "loss/rows.h"

namespace dsk {
namespace {

template <typename T, typename Row>
__global__ void __launch_bounds__(Row::kBlock)
    cross_entropy_forward_kernel(ds_cross_entropy_forward_args a, LossOptions o, bool vector) {
  using Group = typename Row::Group;
  constexpr int64_t kStep = int64_t{Row::kThreads} * RowPack<T>::kSize;
  const int64_t first = int64_t{Group::lane()} * RowPack<T>::kSize;
  DSK_ROWS(Group, row, a.rows) {
    const Target kind = row < a.rows ? target_kind(o, a.target[row]) : Target::kIgnored;
    if (kind == Target::kBad) report_bad_index();
    const int64_t columns = kind == Target::kColumn ? a.columns : 0;
    const T* const logits = static_cast<const T*>(a.logits) + row * a.columns;
    LogSum s;
    for (int64_t column = first; column < columns; column += Row::kPacks * kStep) {
      RowPack<T> packs[Row::kPacks];
      load_packs(logits, column, kStep, columns, vector, packs);
      s.add(packs, column, kStep, columns);
    }
    s.template fold<Group>();
    if (first != 0 || row >= a.rows) continue;
    RowLoss found = {0.0f, 0.0f};
    if (columns > 0) found = row_loss(o, s, to_float(logits[a.target[row]]));
    a.losses[row] = found.loss;
    a.lse[row] = found.lse;
  }
}

}  // namespace

int32_t cross_entropy_forward(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_forward_args* a = static_cast<const ds_cross_entropy_forward_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const bool vector = whole_packs<T>(a->columns, a->logits);
    return with_row_shape<T, RowShape<kRowWarp, 4>, RowShape<512, 4>>(a->columns, [&](auto shape) -> int32_t {
      using Row = decltype(shape);
      return launch(exec, Shape(Row::blocks(a->rows), Row::kBlock), cross_entropy_forward_kernel<T, Row>, *a,
                    loss_options(*a), vector);
    });
  });
}

}  // namespace dsk
