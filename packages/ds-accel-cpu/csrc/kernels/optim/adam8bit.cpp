// adam8bit_: Adam with both moments as a byte an element and a scale a block, in one pass over memory.
#include "optim/adam_update.h"
#include "optim/codes8.h"
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

constexpr int64_t kLargestStateBlock = 4 * kBlock;

// One block of states, in first- and second-level cache: decode, update, encode.
void run_state_block(const Pass<0>& pass, const ds_adam8bit_args& a, AdamUpdate chosen, const AdamScalars& s,
                     int64_t block) {
  alignas(64) float exp_avg[kLargestStateBlock];
  alignas(64) float exp_avg_sq[kLargestStateBlock];
  const int64_t start = block * a.block_size;
  const int64_t count = min64(a.block_size, a.numel - start);
  load_signed(a.exp_avg + start, a.exp_avg_scale[block], exp_avg, count);
  load_unsigned(a.exp_avg_sq + start, a.exp_avg_sq_scale[block], exp_avg_sq, count);
  for (int64_t offset = 0; offset < count; offset += kBlock) {
    const auto update = [&](float* p, const float* g, float* const*, int64_t n) {
      chosen(p, g, exp_avg + offset, exp_avg_sq + offset, n, s);
    };
    run_block(pass, update, start + offset, min64(kBlock, count - offset));
  }
  const uint32_t largest = largest_bits(exp_avg, count);
  const uint32_t largest_sq = largest_bits(exp_avg_sq, count);
  a.exp_avg_scale[block] = float_of(largest);
  a.exp_avg_sq_scale[block] = float_of(largest_sq);
  store_codes<true>(exp_avg, largest, a.exp_avg + start, count);
  store_codes<false>(exp_avg_sq, largest_sq, a.exp_avg_sq + start, count);
}

}  // namespace

int32_t adam8bit(const void* arguments, const ds_exec* exec) {
  const ds_adam8bit_args* a = static_cast<const ds_adam8bit_args*>(arguments);
  if (!is_valid(a, exec) || a->block_size < 1 || a->block_size > kLargestStateBlock) return DS_BAD_ARGUMENT;
  const Pass<0> pass = make_pass<0>(*a, DS_NONE);
  if (!pass.dtypes_served()) return DS_UNSUPPORTED_DTYPE;
  const AdamScalars s = adam_scalars(*a);
  const AdamUpdate chosen = choose_adam_update(a->lerp_weight, a->adamw != 0);
  const int64_t blocks = ceil_div(a->numel, a->block_size);
  const int64_t per_task = units_per_task(exec, a->numel, a->block_size);
  parallel_for(exec, ceil_div(blocks, per_task), [&](int64_t task) {
    const int64_t end = min64(blocks, (task + 1) * per_task);
    for (int64_t block = task * per_task; block < end; ++block) run_state_block(pass, *a, chosen, s, block);
    if (pass.stream_copy) stream_fence();
  });
  return DS_OK;
}

}  // namespace dsk
