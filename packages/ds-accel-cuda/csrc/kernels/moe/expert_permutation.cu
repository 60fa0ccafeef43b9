// expert_permutation: a stable counting sort of pairs by expert.
//
// Note [A stable counting sort]
// Pairs in their order are cut into tiles, a team of 32 lanes each. First each tile counts its pairs for every expert.
// Then each expert adds up its counts over the tiles: where in it a tile begins. Then experts add up their rooms: where
// each begins. Then the tiles go over their pairs again, 32 at a time: lanes whose pairs have the same expert find each
// other by ballots over the bits of its number, and a lane's rank is the tile's beginning, what the tile had before,
// and the lanes below it. Every place follows from order alone, so nothing depends on which tile is first.
#include "gpu/gpu.h"
#include "moe/lanes.h"
#include "moe/rows.h"

namespace dsk {
using namespace moe;
namespace {

constexpr int64_t kLeastTile = 256;
constexpr int64_t kMostTiles = 1024;
constexpr size_t kSharedBytes = 48 * 1024;

struct Plan {
  int64_t pairs;
  int64_t tile;  // pairs
  int64_t tiles;
  int teams;  // of a block: each has a counter an expert in shared memory
};

inline Plan plan_of(const ds_expert_permutation_args& a) {
  Plan p;
  p.pairs = a.tokens * a.slots;
  p.tile = ceil_div(max64(ceil_div(p.pairs, kMostTiles), kLeastTile), kTeam) * kTeam;
  p.tiles = ceil_div(p.pairs, p.tile);
  p.teams = kThreads / kTeam;
  while (p.teams > 2 && p.teams * static_cast<size_t>(a.experts) * sizeof(int32_t) > kSharedBytes) p.teams /= 2;
  while (p.teams > 2 && p.teams / 2 >= p.tiles) p.teams /= 2;
  return p;
}

inline Shape tiles_shape(const ds_expert_permutation_args& a, const Plan& p) {
  const size_t bytes = p.teams * static_cast<size_t>(a.experts) * sizeof(int32_t);
  Shape shape(blocks_for(p.tiles, p.teams), p.teams * kTeam, bytes);
  return bytes > kSharedBytes ? shape.large() : shape;
}

// The pair that is `number` in order.
DSK_DEVICE int64_t pair_at(const ds_expert_permutation_args& a, int64_t number) {
  if (a.by_slot == 0) return number;
  return number % a.tokens * a.slots + number / a.tokens;
}

// The counters of this team, all 0.
DSK_DEVICE int32_t* clear_counters(const ds_expert_permutation_args& a) {
  int32_t* const counters = dynamic_shared<int32_t>() + team_in_block() * a.experts;
  for (int e = team_rank(); e < a.experts; e += kTeam) counters[e] = 0;
  __syncwarp();
  return counters;
}

__global__ void __launch_bounds__(kThreads) count_kernel(ds_expert_permutation_args a, Plan p, int64_t* begins) {
  for (int64_t base = 0; base < p.tiles; base += team_count()) {
    const int64_t tile = base + team_number();
    int32_t* const counters = clear_counters(a);
    const int64_t end = min64(p.pairs, (tile + 1) * p.tile);
    for (int64_t i = tile * p.tile + team_rank(); i < end; i += kTeam) {
      const int64_t expert = a.chosen[pair_at(a, i)];
      if (expert < -1 || expert >= a.experts) {
        report_bad_index();
      } else if (expert >= 0) {
        atomicAdd(&counters[expert], 1);
      }
    }
    __syncwarp();
    for (int64_t e = team_rank(); tile < p.tiles && e < a.experts; e += kTeam) begins[e * p.tiles + tile] = counters[e];
    __syncwarp();
  }
}

// Sum of the values of lower lanes of the team; `total` is that of all.
DSK_DEVICE int64_t sum_before(int64_t value, int64_t& total) {
  int64_t sum = value;
  for (int step = 1; step < kTeam; step *= 2) {
    const int64_t below = __shfl_up_sync(kAllLanes, sum, step, kTeam);
    if (team_rank() >= step) sum += below;
  }
  total = team_shuffle(sum, kTeam - 1);
  return sum - value;
}

__global__ void __launch_bounds__(kThreads) begin_kernel(ds_expert_permutation_args a, Plan p, int64_t* begins) {
  for (int64_t base = 0; base < a.experts; base += team_count()) {
    const int64_t expert = base + team_number();
    const bool active = expert < a.experts;
    int64_t before = 0;
    for (int64_t first = 0; first < p.tiles; first += kTeam) {
      const int64_t tile = first + team_rank();
      const bool mine = active && tile < p.tiles;
      int64_t total;
      const int64_t sum = sum_before(mine ? begins[expert * p.tiles + tile] : 0, total);
      if (mine) begins[expert * p.tiles + tile] = before + sum;
      before += total;
    }
    if (active && team_rank() == 0) a.counts[expert] = before;
  }
}

DSK_DEVICE int64_t kept_of(const ds_expert_permutation_args& a, int64_t count) {
  return a.capacity < 0 ? count : min64(count, a.capacity);
}

// One block.
__global__ void __launch_bounds__(kThreads) offset_kernel(ds_expert_permutation_args a) {
  DSK_SHARED(int64_t, of_teams, [kThreads / kTeam]);
  int64_t before = 0;
  for (int64_t first = 0; first < a.experts; first += blockDim.x) {
    const int64_t expert = first + threadIdx.x;
    int64_t room = 0;
    if (expert < a.experts) room = a.fixed != 0 ? a.capacity : kept_of(a, a.counts[expert]);
    room = ceil_div(room, a.multiple) * a.multiple;
    int64_t total;
    int64_t sum = sum_before(room, total);
    if (team_rank() == 0) of_teams[team_in_block()] = total;
    __syncthreads();
    total = 0;
    for (int team = 0; team < static_cast<int>(blockDim.x) / kTeam; ++team) {
      if (team < team_in_block()) sum += of_teams[team];
      total += of_teams[team];
    }
    if (expert < a.experts) a.offsets[expert] = before + sum;
    before += total;
    __syncthreads();
  }
  if (threadIdx.x == 0) a.offsets[a.experts] = before;
}

// Lanes of the team with the same expert, an integer below 2 to the power of `bits`; none for a lane without one.
DSK_DEVICE uint32_t peers_of(int64_t expert, int bits) {
  uint32_t peers = team_ballot(expert >= 0);
  for (int bit = 0; bit < bits; ++bit) {
    const bool is_set = (expert >> bit & 1) != 0;
    const uint32_t with = team_ballot(is_set);
    peers &= is_set ? with : ~with;
  }
  return expert >= 0 ? peers : 0;
}

__global__ void __launch_bounds__(kThreads)
    place_kernel(ds_expert_permutation_args a, Plan p, const int64_t* begins, int bits) {
  for (int64_t base = 0; base < p.tiles; base += team_count()) {
    const int64_t tile = base + team_number();
    int32_t* const counters = clear_counters(a);
    const int64_t end = min64(p.pairs, (tile + 1) * p.tile);
    for (int64_t first = 0; first < p.tile; first += kTeam) {  // equally often for all teams
      const int64_t i = tile * p.tile + first + team_rank();
      const int64_t pair = i < end ? pair_at(a, i) : -1;
      int64_t expert = pair >= 0 ? a.chosen[pair] : -1;
      if (expert >= a.experts) expert = -1;  // was reported
      const uint32_t peers = peers_of(expert, bits);
      const uint32_t below = peers & ((1u << team_rank()) - 1u);
      const int32_t had = expert >= 0 ? counters[expert] : 0;
      __syncwarp();
      if (expert >= 0 && below == 0) counters[expert] = had + __popc(peers);
      __syncwarp();
      int64_t place = -1;
      if (expert >= 0) {
        const int64_t rank = begins[expert * p.tiles + tile] + had + __popc(below);
        if (a.capacity < 0 || rank < a.capacity) place = a.offsets[expert] + rank;
      }
      if (pair >= 0) a.places[pair] = place;
      if (place >= 0 && place < a.size) {
        a.pair_of[place] = pair;
        a.token_of[place] = pair / a.slots;
      }
    }
  }
}

bool fits(const ds_expert_permutation_args& a) {
  return a.tokens >= 0 && a.slots >= 0 && a.experts >= 1 && a.experts <= DS_MOST_EXPERTS && a.multiple >= 1 &&
         a.size >= 0 && (a.fixed == 0 || a.capacity >= 0);
}

}  // namespace

uint64_t expert_permutation_workspace(const void* arguments) {
  const ds_expert_permutation_args* a = static_cast<const ds_expert_permutation_args*>(arguments);
  return fits(*a) ? static_cast<uint64_t>(plan_of(*a).tiles * a->experts) * sizeof(int64_t) : 0;
}

int32_t expert_permutation(const void* arguments, const ds_exec* exec) {
  const ds_expert_permutation_args* a = static_cast<const ds_expert_permutation_args*>(arguments);
  if (!is_valid(a, exec) || !fits(*a)) return DS_BAD_ARGUMENT;
  if (exec->workspace_bytes < expert_permutation_workspace(arguments)) return DS_WORKSPACE_TOO_SMALL;
  const Plan p = plan_of(*a);
  int64_t* const begins = static_cast<int64_t*>(exec->workspace);
  int bits = 0;
  while ((int64_t{1} << bits) < a->experts) ++bits;
  const size_t bytes = static_cast<size_t>(a->size) * sizeof(int64_t);
  int32_t status = launch(exec, tiles_shape(*a, p), count_kernel, *a, p, begins);
  if (status == DS_OK) status = launch(exec, team_shape(a->experts), begin_kernel, *a, p, begins);
  if (status == DS_OK) status = launch(exec, Shape(1, a->experts > 64 ? kThreads : 64), offset_kernel, *a);
  if (status == DS_OK) status = set_bytes(exec, a->pair_of, 0xff, bytes);  // -1 where no pair comes
  if (status == DS_OK) status = set_bytes(exec, a->token_of, 0xff, bytes);
  if (status != DS_OK) return status;
  return launch(exec, tiles_shape(*a, p), place_kernel, *a, p, begins, bits);
}

}  // namespace dsk
