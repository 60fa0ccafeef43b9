// cross_entropy_: losses, and the logits replaced by the gradient of factor * sum(losses).
//
// Memory traffic: logits read and written once, 1.0 times the minimum, up to 2,048 packs of 16 bytes a row (16,384
// classes of 16 bits); what a row has beyond that is read twice, at most 1.5 times the minimum, against 2.0 of a
// forward and a backward.
#include "loss/cross_entropy.h"
#include "loss/rows.h"

namespace dsk {
namespace {

template <typename T, int n>
DSK_DEVICE void write_gradient(T* logits, int64_t column, int64_t step, int64_t columns, bool vector,
                               const RowSlope& slope, const RowPack<T> (&packs)[n]) {
#pragma unroll
  for (int k = 0; k < n; ++k) {
    const int64_t first = column + k * step;
    if (first >= columns) break;
    store_pack(gradient_pack(slope, first, packs[k]), logits, first, columns, vector);
  }
}

template <typename T, typename Row>
__global__ void __launch_bounds__(Row::kBlock, Row::kResident)
    cross_entropy_in_place_kernel(ds_cross_entropy_args a, LossOptions o, bool vector) {
  using Group = typename Row::Group;
  constexpr int64_t kStep = int64_t{Row::kThreads} * RowPack<T>::kSize;
  const int64_t first = int64_t{Group::lane()} * RowPack<T>::kSize;
  DSK_ROWS(Group, row, a.rows) {
    const int64_t target = row < a.rows ? a.target[row] : o.ignore_index;
    const Target kind = target_kind(o, target);
    if (kind == Target::kBad) report_bad_index();
    const int64_t columns = row_columns(row, a.rows, a.columns);
    const int64_t read = kind == Target::kColumn ? columns : 0;
    const int64_t behind = Row::kLonger ? first + Row::kPacks * kStep : columns;
    T* const logits = static_cast<T*>(a.logits) + row * a.columns;
    RowPack<T> kept[Row::kPacks];
    RowPack<T> more[1];
    LogSum s;
    load_packs(logits, first, kStep, read, vector, kept);
    // One pack after the other, so that not all are held as float32.
#pragma unroll
    for (int k = 0; k < Row::kPacks; ++k) {
      more[0] = kept[k];
      s.add(more, first + k * kStep, kStep, read);
    }
    for (int64_t column = behind; column < read; column += kStep) {
      load_packs(logits, column, kStep, read, vector, more);
      s.add(more, column, kStep, read);
    }
    s.template fold<Group>();
    RowLoss found = {0.0f, 0.0f};
    if (first == 0 && read > 0) found = row_loss(o, s, to_float(logits[target]));
    // All get lse of the first, which has read the target's logit by then.
    float both[2] = {found.loss, found.lse};
    Group::fold(both, Add{});
    if (first == 0 && row < a.rows) a.losses[row] = both[0];
    const RowSlope slope = row_slope(o, target, both[1], a.factor);
    write_gradient(logits, first, kStep, columns, vector, slope, kept);
    for (int64_t column = behind; column < columns; column += kStep) {
      load_packs(logits, column, kStep, read, vector, more);
      write_gradient(logits, column, kStep, columns, vector, slope, more);
    }
  }
}

}  // namespace

int32_t cross_entropy_in_place(const void* arguments, const ds_exec* exec) {
  const ds_cross_entropy_args* a = static_cast<const ds_cross_entropy_args*>(arguments);
  if (!is_valid(a, exec) || a->rows < 0 || a->columns < 0) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    const bool vector = whole_packs<T>(a->columns, a->logits);
    return with_row_shape<T, RowShape<kRowWarp, 4>, RowShape<1024, 2, true>>(a->columns, [&](auto shape) -> int32_t {
      using Row = decltype(shape);
      return launch(exec, Shape(Row::blocks(a->rows), Row::kBlock), cross_entropy_in_place_kernel<T, Row>, *a,
                    loss_options(*a), vector);
    });
  });
}

}  // namespace dsk
