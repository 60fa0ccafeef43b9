// Teams: the threads that work on one row or one group together.
//
// Note [Teams]
// A team is a power of two of neighbouring lanes, at most 32, or a whole block of kThreads threads. What a team adds up
// is added in one order: thread by thread where each has its own elements, then as Note [Order of a sum] says. The
// width follows from the shape alone; so the bits do not depend on the device, on pointers or on what other teams do.
#pragma once

#include "gpu/gpu.h"
#include "vectors.h"

namespace dsk {

constexpr int kLanes = 32;  // the widest team within a warp, of any device

// The width of teams for `length` elements, of which a thread takes kVector at a time.
inline int team_width(int64_t length) {
  if (length > 16 * kLanes * kVector) return kThreads;
  int width = 1;
  while (width < kLanes && width * kVector < length) width *= 2;
  return width;
}

// How many threads a block has: few for tiny tensors, so that no warp is there for nothing.
inline int team_threads(int64_t teams, int width) {
  int threads = 64;
  while (threads < kThreads && threads < teams * width) threads *= 2;
  return threads;
}

inline Shape team_shape(int64_t teams, int width) {
  const int threads = width == kThreads ? kThreads : team_threads(teams, width);
  return Shape(blocks_for(teams, threads / width), threads);
}

// All threads of a block make the same calls.
class Team {
 public:
  DSK_DEVICE explicit Team(int width) : width_(width) {}

  DSK_DEVICE int rank() const { return static_cast<int>(threadIdx.x) & (width_ - 1); }
  // The number of the team, and how many there are, in the whole grid.
  DSK_DEVICE int64_t number() const {
    return blockIdx.x * static_cast<int64_t>(blockDim.x / width_) + threadIdx.x / width_;
  }
  DSK_DEVICE int64_t count() const { return gridDim.x * static_cast<int64_t>(blockDim.x / width_); }

  // op(a, b) over the values of all threads of the team, known to each of them; `nothing` changes no value.
  template <typename T, typename Op>
  DSK_DEVICE T all(T value, Op op, T nothing) const {
    return width_ <= kLanes ? warp_reduce(value, op, width_) : block_reduce(value, op, nothing);
  }

  DSK_DEVICE float sum(float value) const { return all(value, Add(), 0.0f); }

 private:
  int width_;
};

}  // namespace dsk
