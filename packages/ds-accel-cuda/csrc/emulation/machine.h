// What the code of a kernel asks of the machine it is emulated on: who am I, barriers, warp operations, shared memory.
//
// Note [Emulation]
// A thread of a block is a fiber. All threads of a block run on one host thread, one at a time, each until it waits for
// others (a barrier, an operation of its warp) or ends. Which of those that may go on is next is the *order*: by
// number, by number from the last, or drawn at random. CUDA promises no order, so results must be equal for all; a
// kernel that reads what another thread writes without a barrier between them is found by that. Shared memory begins as
// NaNs. Whatever CUDA leaves undefined, and what would hang a device, ends the launch with a message.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#ifndef DSK_EMULATE_WARP
#define DSK_EMULATE_WARP 32
#endif

struct uint3 {
  unsigned int x, y, z;
};
struct dim3 {
  unsigned int x, y, z;
  constexpr dim3(unsigned int x_ = 1, unsigned int y_ = 1, unsigned int z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace dsk_emulation {

constexpr int kWarp = DSK_EMULATE_WARP;
static_assert(kWarp == 32 || kWarp == 64, "a warp has 32 or 64 lanes");
using Mask = std::conditional_t<kWarp == 64, uint64_t, uint32_t>;

constexpr unsigned kMostThreads = 1024;
constexpr std::size_t kShared = 48u << 10;       // bytes of a block that every device has
constexpr std::size_t kLargeShared = 64u << 10;  // those it has when asked: compute capability 7.5, and AMD's

// Place in a source, for messages.
struct Site {
  const char* file;
  int line;
};

class Engine;

// What a thread that runs is told about itself.
struct Thread {
  uint3 index;
  uint3 block;
  dim3 block_size;
  dim3 grid_size;
  Engine* engine;
};
extern thread_local Thread* current __attribute__((tls_model("initial-exec"), visibility("hidden")));

enum class Barrier { kPlain, kCount, kAnd, kOr };
enum class WarpOp { kSync, kShuffle, kBallot, kAny, kAll };

// All threads of the block. Returns what the predicates amount to.
int barrier(Barrier kind, bool predicate, Site site);

// The lanes of `mask`. `source` is the lane that a shuffle reads.
uint64_t warp(WarpOp op, Mask mask, uint64_t value, int source, Site site);

int lane();

// Shared memory of the block: the same for the same tag.
void* shared(const void* tag, std::size_t bytes, std::size_t alignment, Site site);
void* dynamic_shared();

// Ends the launch; the op returns `status`.
[[noreturn]] void fail(int32_t status, const char* text);

struct Shape {
  dim3 grid;
  dim3 block;
  std::size_t shared_bytes;
  bool large_shared;
  Site site;
};

// Runs call(arguments) in every thread of a launch, blocks on at most `host_threads`. Returns DS_OK, or what it ended
// with; then `last_error` of the calling thread says why.
int32_t run(const Shape& shape, void (*call)(const void* arguments), const void* arguments, int host_threads);
const char* last_error();

// Source lanes of shuffles. `width` is a power of two, at most a warp.
inline int source_of_index(int self, int index, int width) { return (self & ~(width - 1)) | (index & (width - 1)); }
inline int source_of_up(int self, unsigned delta, int width) {
  const int source = self - static_cast<int>(delta);
  return source < (self & ~(width - 1)) ? self : source;
}
inline int source_of_down(int self, unsigned delta, int width) {
  const int source = self + static_cast<int>(delta);
  return source > (self | (width - 1)) ? self : source;
}
inline int source_of_xor(int self, int bits, int width) {
  const int source = self ^ bits;
  return source > (self | (width - 1)) ? self : source;
}

template <typename T>
T shuffle(Mask mask, T value, int source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t word = 0;
  std::memcpy(&word, &value, sizeof(T));
  word = warp(WarpOp::kShuffle, mask, word, source, site);
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

}  // namespace dsk_emulation
