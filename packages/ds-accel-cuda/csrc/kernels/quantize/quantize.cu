// quantize: groups of consecutive elements as codes with a scale each.
//
// Note [Two ways to quantize]
// Groups of up to kLongGroup elements have a team each, which reads them, agrees on the scale and writes the codes;
// what a thread read first stays in its registers. A longer group is cut into slices, a block each, for two kernels:
// the first widens the group's range in the workspace by atomic maxima, whose result no order changes; the second
// reads the range, and encodes.
#include "quantize/groups.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

constexpr int64_t kLongGroup = 16384;
constexpr int64_t kSlice = 8192;  // elements of a block for long groups

template <class Format, bool kStochastic>
DSK_DEVICE void write8(const ds_quantize_args& a, const Scale& s, const float (&x)[kVector], int64_t n,
                       const Rounding& rounding, int64_t first) {
  uint8_t* q = static_cast<uint8_t*>(a.q) + code_offset<Format::kBits>(first);
  store_codes<Format::kBits>(q, n, encode8<Format, kStochastic>(s, x, n, rounding, first));
}

// A tensor whose codes follow each other without a gap.
struct Flat {
  ds_quantize_args a;

  template <int kBits>
  DSK_DEVICE Place place(int64_t group) const {
    const int64_t first = group * a.group_size;
    return {first, min64(a.group_size, a.numel - first), code_offset<kBits>(first), first};
  }
  DSK_DEVICE void load8(int64_t first, int64_t n, float (&x)[kVector]) const { dsk::load8(a.dtype, a.x, first, n, x); }
};

// Calls body(group, first, n) for eights of elements of slices, one slice a block; slices of a group follow each other.
template <typename Body>
DSK_DEVICE void for_slice(const ds_quantize_args& a, int64_t slice, int64_t slices_of_group, const Body& body) {
  const int64_t group = slice / slices_of_group;
  const int64_t end = min64(a.numel - group * a.group_size, a.group_size);
  const int64_t begin = slice % slices_of_group * kSlice;
  for (int64_t i = begin + threadIdx.x * kVector; i < min64(begin + kSlice, end); i += kThreads * kVector) {
    body(group * a.group_size + i, end - i);
  }
}

__global__ void __launch_bounds__(kThreads, 3)
    widen_ranges(ds_quantize_args a, Range* ranges, int64_t slices_of_group, int64_t slices) {
  const Team team(kThreads);
  const bool is_signed = a.scaling == DS_SCALING_ASYMMETRIC;
  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    Range range;
    for_slice(a, slice, slices_of_group, [&](int64_t first, int64_t n) {
      float x[kVector];
      load8(a.dtype, a.x, first, n, x);
      widen(range, x, is_signed);
    });
    range = over_team(team, range, is_signed);
    if (threadIdx.x != 0) continue;
    Range* shared = ranges + slice / slices_of_group;
    atomicMax(&shared->magnitude, range.magnitude);
    if (is_signed) {
      atomicMin(&shared->low, range.low);
      atomicMax(&shared->high, range.high);
    }
  }
}

template <class Format, bool kStochastic>
__global__ void __launch_bounds__(kThreads, 3)
    encode_slices(ds_quantize_args a, Rounding rounding, const Range* ranges, int64_t slices_of_group, int64_t slices) {
  for (int64_t slice = blockIdx.x; slice < slices; slice += gridDim.x) {
    const int64_t group = slice / slices_of_group;
    const Scale s = scale_of<Format>(ranges[group], a.scaling);
    if (threadIdx.x == 0 && slice % slices_of_group == 0) store_scale(a, group, s);
    for_slice(a, slice, slices_of_group, [&](int64_t first, int64_t n) {
      float x[kVector];
      load8(a.dtype, a.x, first, n, x);
      write8<Format, kStochastic>(a, s, x, n, rounding, first);
    });
  }
}

// Elements that a group has, and groups.
int64_t length_of(const ds_quantize_args& a) { return min64(a.group_size, a.numel); }
int64_t groups_of(const ds_quantize_args& a) { return ceil_div(a.numel, a.group_size); }

template <class Format, bool kStochastic>
int32_t run(const ds_quantize_args& a, const ds_exec* exec) {
  const Rounding rounding = make_rounding(a.rounding_seed, a.rounding_offset, 0);
  const int64_t groups = groups_of(a);
  if (length_of(a) <= kLongGroup) {
    const int width = team_width(length_of(a));
    const Output out = {static_cast<uint8_t*>(a.q), a.scales, a.zeros, a.scaling};
    return launch(exec, team_shape(groups, width), quantize_groups<Format, kStochastic, Flat>, Flat{a}, out, rounding,
                  width, groups);
  }
  Range* ranges = static_cast<Range*>(exec->workspace);
  const int64_t slices_of_group = ceil_div(length_of(a), kSlice);
  const int64_t slices = groups * slices_of_group;
  const Shape shape(blocks_for(slices, 1), kThreads);
  int32_t status = set_bytes(exec, ranges, 0, static_cast<size_t>(groups) * sizeof(Range));
  if (status == DS_OK) status = launch(exec, shape, widen_ranges, a, ranges, slices_of_group, slices);
  if (status != DS_OK) return status;
  return launch(exec, shape, encode_slices<Format, kStochastic>, a, rounding, ranges, slices_of_group, slices);
}

}  // namespace

uint64_t quantize_workspace(const void* arguments) {
  const ds_quantize_args* a = static_cast<const ds_quantize_args*>(arguments);
  if (a->numel <= 0 || a->group_size < 1 || length_of(*a) <= kLongGroup) return 0;
  return static_cast<uint64_t>(groups_of(*a)) * sizeof(Range);
}

int32_t quantize(const void* arguments, const ds_exec* exec) {
  const ds_quantize_args* a = static_cast<const ds_quantize_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  if (exec->workspace_bytes < quantize_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  return with_format(a->format, [&](auto tag) -> int32_t {
    using Format = decltype(tag);
    if (!is_served<Format>(a->scaling, a->group_size)) return DS_BAD_ARGUMENT;
    if (a->numel == 0) return DS_OK;
    return a->rounding_seed >= 0 ? run<Format, true>(*a, exec) : run<Format, false>(*a, exec);
  });
}

}  // namespace dsk
