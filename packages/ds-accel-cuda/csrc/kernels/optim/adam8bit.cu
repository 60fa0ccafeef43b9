// adam8bit_: Adam with both moments as a byte an element and a scale a block, in one pass over memory.
#include "optim/adam_update.h"
#include "optim/codes8.h"
#include "optim/pass.h"
#include "optim/rows.h"

namespace dsk {
namespace {

constexpr int64_t kLargestStateBlock = 4096;

struct States {
  uint8_t* exp_avg;
  uint8_t* exp_avg_sq;
  float* exp_avg_scale;
  float* exp_avg_sq_scale;
  int64_t block_size;
};

struct LargestBits {
  DSK_DEVICE uint32_t operator()(uint32_t a, uint32_t b) const { return a > b ? a : b; }
};

// One block of states by one block of threads; the moments stay in registers, kEach of them a thread.
template <int kEach>
DSK_DEVICE void update_block(const Pass<0>& pass, const States& states, const AdamUpdate& update,
                             const CodeTrees& trees, float factor, int64_t block) {
  const int64_t start = block * states.block_size;
  const int count = static_cast<int>(min64(states.block_size, pass.numel - start));
  const float scale = states.exp_avg_scale[block];
  const float scale_sq = states.exp_avg_sq_scale[block];
  float exp_avg[kEach] = {};
  float exp_avg_sq[kEach] = {};
  uint32_t largest = 0;
  uint32_t largest_sq = 0;
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int place = k * kThreads + static_cast<int>(threadIdx.x);
    if (place >= count) continue;
    const int64_t i = start + place;
    float both[2] = {decode_signed(trees, states.exp_avg[i], scale),
                     decode_unsigned(trees, states.exp_avg_sq[i], scale_sq)};
    float p = load(pass.param, i);
    update(p, load(pass.grad, i) * factor, both);
    p = store(pass.param, i, p, pass.param_rounding);
    if (pass.copy_out.dtype != DS_NONE) store(pass.copy_out, i, p, Rounding{});
    exp_avg[k] = both[0];
    exp_avg_sq[k] = both[1];
    // As integers NaN is above infinity, and infinity above every number.
    largest = LargestBits{}(largest, magnitude_bits(both[0]));
    largest_sq = LargestBits{}(largest_sq, magnitude_bits(both[1]));
  }
  largest = block_reduce(largest, LargestBits{}, 0u);  // its barriers part the reads of the scales from the writes
  largest_sq = block_reduce(largest_sq, LargestBits{}, 0u);
  if (threadIdx.x == 0) {
    states.exp_avg_scale[block] = float_of(largest);
    states.exp_avg_sq_scale[block] = float_of(largest_sq);
  }
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int place = k * kThreads + static_cast<int>(threadIdx.x);
    if (place >= count) continue;
    states.exp_avg[start + place] = encode_signed(trees, exp_avg[k], largest);
    states.exp_avg_sq[start + place] = encode_unsigned(trees, exp_avg_sq[k], largest_sq);
  }
}

template <int kEach>
__global__ void __launch_bounds__(kThreads, 2)
    adam8bit_kernel(const Pass<0> pass, const States states, const AdamUpdate update, int64_t blocks) {
  DSK_SHARED(CodeTrees, trees, );
  fill_trees(trees);
  __syncthreads();
  const float factor = factor_of(pass.grad_factor);
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    update_block<kEach>(pass, states, update, trees, factor, block);
  }
}

}  // namespace

int32_t adam8bit(const void* arguments, const ds_exec* exec) {
  const ds_adam8bit_args* a = static_cast<const ds_adam8bit_args*>(arguments);
  if (!is_valid(a, exec) || a->numel < 0) return DS_BAD_ARGUMENT;
  if (a->block_size < 1 || a->block_size > kLargestStateBlock) return DS_BAD_ARGUMENT;
  const Pass<0> pass = make_pass<0>(*a, {nullptr}, DS_NONE);
  if (!pass.dtypes_served()) return DS_UNSUPPORTED_DTYPE;
  const States states = {a->exp_avg, a->exp_avg_sq, a->exp_avg_scale, a->exp_avg_sq_scale, a->block_size};
  const int64_t blocks = ceil_div(a->numel, a->block_size);
  const Shape shape(blocks_for(blocks, 1), kThreads);
  const AdamUpdate update = adam_update(*a);
  if (a->block_size <= 8 * kThreads) return launch(exec, shape, adam8bit_kernel<8>, pass, states, update, blocks);
  return launch(exec, shape, adam8bit_kernel<16>, pass, states, update, blocks);
}

}  // namespace dsk
