// One block at a time on one host thread: the states of its threads, who runs next, and what they wait for.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "emulation/fibers.h"
#include "emulation/machine.h"

namespace dsk_emulation {

enum class Order { kInOrder, kReversed, kShuffled };

// A small generator for orders. Source: S. Vigna's splitmix64, public domain.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  unsigned below(unsigned bound) { return static_cast<unsigned>((next() >> 32) * bound >> 32); }

 private:
  uint64_t state_;
};

// "kernels/optim/lamb.cu:87".
std::string text_of(Site site);

// What the blocks of one launch share.
struct Launch {
  Shape shape;
  void (*call)(const void* arguments);
  const void* arguments;
  Order order;
  uint64_t seed;
  std::atomic<bool> failed{false};
  std::mutex mutex;  // of what follows
  int32_t status = 0;
  std::string text;
};

enum class State { kNew, kReady, kRunning, kAtBarrier, kAtWarp, kDone };

struct Worker {
  Thread told;
  State state = State::kNew;
  Fiber* fiber = nullptr;
  Site site = {"", 0};  // where it waits
  WarpOp op = WarpOp::kSync;
  Mask mask = 0;
  uint64_t value = 0;
  uint64_t result = 0;
  int source = 0;
};

class Engine {
 public:
  Engine();
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Returns false if the launch ended with an error.
  bool run_block(Launch& launch, uint3 block, uint64_t number);

  int barrier(Barrier kind, bool predicate, Site site);
  uint64_t warp(WarpOp op, Mask mask, uint64_t value, int source, Site site);
  int lane() const { return running_ % kWarp; }
  void* shared(const void* tag, std::size_t bytes, std::size_t alignment, Site site);
  void* dynamic_shared() { return arena_; }
  [[noreturn]] void fail(int32_t status, const std::string& text);

 private:
  struct Slot {
    const void* tag;
    void* memory;
  };
  static constexpr int kMostWarps = static_cast<int>(kMostThreads) / kWarp;

  static void fiber_main(void* self) { static_cast<Engine*>(self)->run_threads(); }
  void run_threads();
  void begin_block(uint3 block, uint64_t number);
  void begin_shared();
  void end_abandoned();

  // The thread to run next, or -1 if none can.
  int pick();
  int pick_warp();
  void set_ready(int thread) { ready_[thread / kWarp] |= Mask{1} << (thread % kWarp); }
  void start(int thread);
  void suspend();
  Fiber* take_fiber();
  int threads_of_warp(int warp) const;
  void check_mask(WarpOp op, Mask mask, int source, Site site);
  void complete_warp(int warp, Mask mask);
  [[noreturn]] void disagree(int lane);
  std::string who_waits() const;
  [[noreturn]] void stuck();

  Launch* launch_ = nullptr;
  uint3 block_ = {0, 0, 0};
  Random random_{0};
  int count_ = 0;
  int done_ = 0;
  int running_ = -1;
  int warp_now_ = 0;
  std::array<Worker, kMostThreads> workers_;
  std::array<Mask, kMostWarps> ready_ = {};
  std::array<Mask, kMostWarps> alive_ = {};
  std::array<Mask, kMostWarps> waiting_ = {};  // lanes at an operation of their warp

  int arrived_ = 0;
  int predicates_ = 0;
  int barrier_result_ = 0;
  Barrier barrier_kind_ = Barrier::kPlain;
  Site barrier_site_ = {"", 0};

  Fiber host_;
  Fiber* fiber_now_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;

  unsigned char* arena_ = nullptr;
  std::size_t arena_used_ = 0;   // with gaps
  std::size_t shared_used_ = 0;  // as a device counts
  std::vector<Slot> slots_;
};

}  // namespace dsk_emulation
