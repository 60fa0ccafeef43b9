// The 32 lanes that work on one token, or one tile of pairs, together; the same on warps of 32 and of 64.
#pragma once

#include "gpu/gpu.h"

namespace dsk::moe {

constexpr int kTeam = 32;

DSK_DEVICE int team_rank() { return static_cast<int>(threadIdx.x) % kTeam; }
DSK_DEVICE int team_in_block() { return static_cast<int>(threadIdx.x) / kTeam; }
DSK_DEVICE int64_t team_number() { return blockIdx.x * static_cast<int64_t>(blockDim.x / kTeam) + team_in_block(); }
DSK_DEVICE int64_t team_count() { return gridDim.x * static_cast<int64_t>(blockDim.x / kTeam); }

// Which lanes of the team say yes.
DSK_DEVICE uint32_t team_ballot(bool predicate) {
  const LaneMask all = __ballot_sync(kAllLanes, predicate);
  return static_cast<uint32_t>(all >> (lane_of_thread() / kTeam * kTeam));
}

DSK_DEVICE float team_sum(float value) { return warp_sum(value, kTeam); }

template <typename T>
DSK_DEVICE T team_max(T value) {
  return warp_reduce(value, [](T a, T b) { return b > a ? b : a; }, kTeam);
}

// The value of a lane of the team.
template <typename T>
DSK_DEVICE T team_shuffle(T value, int rank) {
  return __shfl_sync(kAllLanes, value, rank, kTeam);
}

// A team for each of `count` things; few threads for few things.
inline Shape team_shape(int64_t count) {
  const int threads = count > 4 ? kThreads : 64;
  return Shape(blocks_for(count, threads / kTeam), threads);
}

}  // namespace dsk::moe
