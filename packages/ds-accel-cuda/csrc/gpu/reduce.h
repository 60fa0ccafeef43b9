// Sums and their kin over a warp or a block, in an order that neither the device nor the width of a warp changes.
//
// Note [Order of a sum]
// A block's values are added as a balanced binary tree over thread numbers: neighbours, then pairs of neighbours, and
// so on, with zeros where there is no thread. The first levels are shuffles within a warp, the rest go through shared
// memory; the tree is the same for warps of 32 and 64. Every thread gets the result.
#pragma once

namespace dsk {

struct Add {
  template <typename T>
  DSK_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};

// The larger; NaN if there is one.
struct Largest {
  template <typename T>
  DSK_DEVICE T operator()(T a, T b) const {
    return b > a || b != b ? b : a;
  }
};

// `op` over groups of `width` lanes, a power of two; every lane of a group gets its result.
template <typename T, typename Op>
DSK_DEVICE T warp_reduce(T value, Op op, int width = kWarp) {
  for (int bits = 1; bits < width; bits *= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, bits);
    // Lower lane first, for an op whose operands are not alike.
    value = (lane_of_thread() & bits) != 0 ? op(other, value) : op(value, other);
  }
  return value;
}

// `op` over all threads of the block; `nothing` changes no value. Every thread of the block calls it. It ends with a
// barrier, so it may be called again at once.
template <typename T, typename Op>
DSK_DEVICE T block_reduce(T value, Op op, T nothing) {
  DSK_SHARED(T, partial, [32]);
  value = warp_reduce(value, op);
  if (lane_of_thread() == 0) partial[warp_of_thread()] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  value = lane_of_thread() < warps ? partial[lane_of_thread()] : nothing;
  value = warp_reduce(value, op, 32);
  value = __shfl_sync(kAllLanes, value, 0);
  __syncthreads();
  return value;
}

template <typename T>
DSK_DEVICE T warp_sum(T value, int width = kWarp) {
  return warp_reduce(value, Add{}, width);
}
template <typename T>
DSK_DEVICE T block_sum(T value) {
  return block_reduce(value, Add{}, T(0));
}

}  // namespace dsk
