#include "emulation/engine.h"

#include <algorithm>
#include <cstdlib>

#include "ds_kernel.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define DSK_POISON(address, bytes) __asan_poison_memory_region(address, bytes)
#define DSK_UNPOISON(address, bytes) __asan_unpoison_memory_region(address, bytes)
#else
#define DSK_POISON(address, bytes) ((void)(address), (void)(bytes))
#define DSK_UNPOISON(address, bytes) ((void)(address), (void)(bytes))
#endif

namespace dsk_emulation {

thread_local Thread* current = nullptr;

std::string text_of(Site site) {
  const std::string file = site.file;
  const std::size_t folder = file.rfind("/csrc/");
  return (folder == std::string::npos ? file : file.substr(folder + 6)) + ":" + std::to_string(site.line);
}

namespace {

constexpr std::size_t kGap = 64;  // between arrays in shared memory, so that a small step outside is seen
constexpr std::size_t kArena = kLargeShared + (64u << 10);
constexpr unsigned char kPoison[2] = {0xf7, 0x7f};  // 0x7ff7 is a NaN as float16, bfloat16, float32 and float64

int last_bit(uint64_t mask) { return 63 - __builtin_clzll(mask); }
int first_bit(uint64_t mask) { return __builtin_ctzll(mask); }

void poison_with_nans(unsigned char* memory, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; ++i) memory[i] = kPoison[i & 1];
}

// A set of lanes or threads as "0-3, 7".
std::string list_of(const std::vector<int>& members) {
  std::string text;
  for (std::size_t i = 0; i < members.size();) {
    std::size_t last = i;
    while (last + 1 < members.size() && members[last + 1] == members[last] + 1) ++last;
    if (!text.empty()) text += ", ";
    text += std::to_string(members[i]);
    if (last > i) text += "-" + std::to_string(members[last]);
    i = last + 1;
  }
  return text;
}

std::vector<int> lanes_of(Mask mask) {
  std::vector<int> lanes;
  for (int lane = 0; lane < kWarp; ++lane) {
    if (mask >> lane & 1) lanes.push_back(lane);
  }
  return lanes;
}

const char* name_of(WarpOp op) {
  switch (op) {
    case WarpOp::kSync:
      return "__syncwarp";
    case WarpOp::kShuffle:
      return "shuffle";
    case WarpOp::kBallot:
      return "__ballot_sync";
    case WarpOp::kAny:
      return "__any_sync";
    default:
      return "__all_sync";
  }
}

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

std::string text_of(WarpOp op, Site site) { return std::string(name_of(op)) + " at " + text_of(site) + ": "; }

}  // namespace

Engine::Engine() : arena_(static_cast<unsigned char*>(std::aligned_alloc(256, kArena))) {}

Engine::~Engine() {
  for (auto& fiber : fibers_) free_fiber(*fiber);
  DSK_UNPOISON(arena_, kArena);
  std::free(arena_);
}

// --- one block ------------------------------------------------------------------------------------------------------

bool Engine::run_block(Launch& launch, uint3 block, uint64_t number) {
  launch_ = &launch;
  host_ = Fiber{};  // perhaps another host thread than last time
  begin_block(block, number);
  Thread* const outer = current;
  running_ = pick();
  start(running_);
  fiber_now_ = workers_[running_].fiber;
  switch_fiber(host_, *fiber_now_);
  current = outer;
  if (launch.failed.load(std::memory_order_relaxed)) {
    end_abandoned();
    return false;
  }
  return true;
}

void Engine::begin_block(uint3 block, uint64_t number) {
  const dim3 size = launch_->shape.block;
  block_ = block;
  count_ = static_cast<int>(size.x * size.y * size.z);
  done_ = arrived_ = predicates_ = 0;
  random_ = Random(launch_->seed + 0x632be59bd9b4e019ull * (number + 1));
  for (int i = 0; i < count_; ++i) {
    Worker& worker = workers_[i];
    const unsigned n = static_cast<unsigned>(i);
    worker.told = {{n % size.x, n / size.x % size.y, n / size.x / size.y}, block, size, launch_->shape.grid, this};
    worker.state = State::kNew;
    worker.fiber = nullptr;
  }
  for (int warp = 0; warp < kMostWarps; ++warp) {
    const int threads = std::max(0, threads_of_warp(warp));
    ready_[warp] = alive_[warp] = threads == 0 ? Mask{0} : static_cast<Mask>(~Mask{0} >> (kWarp - threads));
    waiting_[warp] = 0;
  }
  warp_now_ = launch_->order == Order::kReversed ? (count_ - 1) / kWarp : 0;
  begin_shared();
}

int Engine::threads_of_warp(int warp) const { return std::min(kWarp, count_ - warp * kWarp); }

// Runs threads from their beginning, until none is left that has not begun.
void Engine::run_threads() {
  for (;;) {
    launch_->call(launch_->arguments);
    Worker& worker = workers_[running_];
    worker.state = State::kDone;
    alive_[running_ / kWarp] &= static_cast<Mask>(~(Mask{1} << (running_ % kWarp)));
    ++done_;
    Fiber* const here = worker.fiber;
    worker.fiber = nullptr;
    const int next = pick();
    if (next < 0) {
      if (done_ != count_) stuck();
      free_.push_back(here);
      current = nullptr;
      switch_fiber(*here, host_);
    } else if (workers_[next].fiber == nullptr) {
      workers_[next].fiber = here;
      start(next);
    } else {
      free_.push_back(here);
      start(next);
      fiber_now_ = workers_[next].fiber;
      switch_fiber(*here, *fiber_now_);
    }
  }
}

// `thread` is the one that runs from now on.
void Engine::start(int thread) {
  Worker& worker = workers_[thread];
  if (worker.fiber == nullptr) worker.fiber = take_fiber();
  worker.state = State::kRunning;
  running_ = thread;
  current = &worker.told;
}

// Leaves the thread that runs, which waits.
void Engine::suspend() {
  Fiber* const here = workers_[running_].fiber;
  const int next = pick();
  if (next < 0) stuck();
  start(next);
  if (workers_[next].fiber == here) return;  // itself
  fiber_now_ = workers_[next].fiber;
  switch_fiber(*here, *fiber_now_);
}

Fiber* Engine::take_fiber() {
  if (free_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>());
    Fiber& fiber = *fibers_.back();
    if (!make_fiber(fiber)) fail(DS_DEVICE_ERROR, "no memory for the stack of a thread");
    prepare_fiber(fiber, fiber_main, this);
    return &fiber;
  }
  Fiber* const fiber = free_.back();
  free_.pop_back();
  return fiber;
}

// After an error: every fiber begins anew, wherever it was.
void Engine::end_abandoned() {
  free_.clear();
  for (auto& fiber : fibers_) {
    prepare_fiber(*fiber, fiber_main, this);
    free_.push_back(fiber.get());
  }
}

// --- the order ------------------------------------------------------------------------------------------------------

int Engine::pick() {
  const int warp = pick_warp();
  if (warp < 0) return -1;
  Mask& ready = ready_[warp];
  int lane = 0;
  if (launch_->order == Order::kInOrder) {
    lane = first_bit(ready);
  } else if (launch_->order == Order::kReversed) {
    lane = last_bit(ready);
  } else {
    const int turn = static_cast<int>(random_.below(kWarp));
    const Mask turned = turn == 0 ? ready : static_cast<Mask>(ready >> turn | ready << (kWarp - turn));
    lane = (first_bit(turned) + turn) % kWarp;
  }
  ready &= static_cast<Mask>(~(Mask{1} << lane));
  return warp * kWarp + lane;
}

int Engine::pick_warp() {
  const int warps = (count_ + kWarp - 1) / kWarp;
  const int step = launch_->order == Order::kReversed ? warps - 1 : 1;
  int warp =
      launch_->order == Order::kShuffled ? static_cast<int>(random_.below(static_cast<unsigned>(warps))) : warp_now_;
  for (int i = 0; i < warps; ++i, warp = (warp + step) % warps) {
    if (ready_[warp] != 0) return warp_now_ = warp;
  }
  return -1;
}

// --- barriers and operations of a warp ------------------------------------------------------------------------------

int Engine::barrier(Barrier kind, bool predicate, Site site) {
  if (arrived_ == 0) {
    barrier_kind_ = kind;
    barrier_site_ = site;
    predicates_ = 0;
  } else if (kind != barrier_kind_ || !same(site, barrier_site_)) {
    fail(DS_DEVICE_ERROR, "divergent barriers: some threads are at the one of " + text_of(barrier_site_) + ", thread " +
                              std::to_string(running_) + " at the one of " + text_of(site));
  }
  predicates_ += predicate ? 1 : 0;
  if (++arrived_ < count_) {
    workers_[running_].state = State::kAtBarrier;
    workers_[running_].site = site;
    suspend();
    return barrier_result_;
  }
  arrived_ = 0;
  barrier_result_ = kind == Barrier::kAnd  ? predicates_ == count_
                    : kind == Barrier::kOr ? predicates_ > 0
                                           : predicates_;
  for (int i = 0; i < count_; ++i) {
    workers_[i].state = State::kReady;
    set_ready(i);
  }
  suspend();  // the last one to come is not the first to go on
  return barrier_result_;
}

uint64_t Engine::warp(WarpOp op, Mask mask, uint64_t value, int source, Site site) {
  const int number = running_ / kWarp;
  const int self = running_ % kWarp;
  check_mask(op, mask, source, site);
  Worker& worker = workers_[running_];
  worker.op = op;
  worker.mask = mask;
  worker.value = value;
  worker.source = source;
  worker.site = site;
  worker.state = State::kAtWarp;
  waiting_[number] |= Mask{1} << self;
  if ((waiting_[number] & mask) == mask) complete_warp(number, mask);
  suspend();  // where all are here, the last one to come is as ready as the others
  return worker.result;
}

void Engine::check_mask(WarpOp op, Mask mask, int source, Site site) {
  const int number = running_ / kWarp;
  const int self = running_ % kWarp;
  if ((mask >> self & 1) == 0) {
    fail(DS_DEVICE_ERROR, text_of(op, site) + "the mask does not name lane " + std::to_string(self) +
                              ", which calls; it names lanes " + list_of(lanes_of(mask)));
  }
  const Mask missing = mask & static_cast<Mask>(~alive_[number]);
  if (missing != 0) {
    fail(DS_DEVICE_ERROR, text_of(op, site) + "the mask names lanes " + list_of(lanes_of(missing)) + " of warp " +
                              std::to_string(number) + ", which have ended or never existed");
  }
  if (op == WarpOp::kShuffle && (source < 0 || source >= kWarp || (mask >> source & 1) == 0)) {
    fail(DS_DEVICE_ERROR, text_of(op, site) + "lane " + std::to_string(self) + " reads lane " + std::to_string(source) +
                              ", which the mask does not name");
  }
}

// All lanes of `mask` are here: gives each its result, and lets it go on.
void Engine::complete_warp(int warp, Mask mask) {
  Worker* const lanes = &workers_[warp * kWarp];
  const WarpOp op = workers_[running_].op;
  Mask votes = 0;
  for (Mask left = mask; left != 0; left &= left - 1) {
    const int lane = first_bit(left);
    if (lanes[lane].op != op || lanes[lane].mask != mask) disagree(lane);
    if (lanes[lane].value != 0) votes |= Mask{1} << lane;
  }
  for (Mask left = mask; left != 0; left &= left - 1) {
    Worker& worker = lanes[first_bit(left)];
    if (op == WarpOp::kShuffle) {
      worker.result = lanes[worker.source].value;
    } else {
      worker.result = op == WarpOp::kBallot ? votes : op == WarpOp::kAny ? votes != 0 : votes == mask;
    }
    worker.state = State::kReady;
  }
  waiting_[warp] &= static_cast<Mask>(~mask);
  ready_[warp] |= mask;
}

// The lane that runs and another of its mask wait for different things.
void Engine::disagree(int lane) {
  const Worker& self = workers_[running_];
  const Worker& other = workers_[running_ / kWarp * kWarp + lane];
  fail(DS_DEVICE_ERROR, text_of(self.op, self.site) + "lane " + std::to_string(running_ % kWarp) + " waits for lanes " +
                            list_of(lanes_of(self.mask)) + ", but lane " + std::to_string(lane) + " is at the " +
                            name_of(other.op) + " of " + text_of(other.site) + " for lanes " +
                            list_of(lanes_of(other.mask)));
}

// --- shared memory --------------------------------------------------------------------------------------------------

void Engine::begin_shared() {
  slots_.clear();
  shared_used_ = launch_->shape.shared_bytes;
  DSK_POISON(arena_, kArena);
  DSK_UNPOISON(arena_, shared_used_);
  poison_with_nans(arena_, shared_used_);
  arena_used_ = (shared_used_ + kGap + kGap - 1) / kGap * kGap;
}

void* Engine::shared(const void* tag, std::size_t bytes, std::size_t alignment, Site site) {
  for (const Slot& slot : slots_) {
    if (slot.tag == tag) return slot.memory;
  }
  const std::size_t limit = launch_->shape.large_shared ? kLargeShared : kShared;
  shared_used_ = (shared_used_ + alignment - 1) / alignment * alignment + bytes;
  if (shared_used_ > limit || arena_used_ + bytes + kGap > kArena) {
    fail(DS_DEVICE_ERROR, "the array of shared memory at " + text_of(site) + " brings the block to " +
                              std::to_string(shared_used_) + " bytes; it may have " + std::to_string(limit));
  }
  unsigned char* const memory = arena_ + arena_used_;
  DSK_UNPOISON(memory, bytes);
  poison_with_nans(memory, bytes);
  arena_used_ = (arena_used_ + bytes + kGap + kGap - 1) / kGap * kGap;
  slots_.push_back({tag, memory});
  return memory;
}

// --- errors ---------------------------------------------------------------------------------------------------------

void Engine::fail(int32_t status, const std::string& text) {
  {
    const std::lock_guard<std::mutex> hold(launch_->mutex);
    if (!launch_->failed.load()) {
      launch_->status = status;
      launch_->text = "launch at " + text_of(launch_->shape.site) + ", block (" + std::to_string(block_.x) + ", " +
                      std::to_string(block_.y) + ", " + std::to_string(block_.z) + "): " + text;
      launch_->failed.store(true);
    }
  }
  switch_fiber(*fiber_now_, host_);
  __builtin_trap();
}

// No thread can go on, and some have not ended.
void Engine::stuck() { fail(DS_DEVICE_ERROR, who_waits()); }

std::string Engine::who_waits() const {
  std::vector<int> ended;
  std::vector<std::pair<std::string, std::vector<int>>> groups;
  for (int i = 0; i < count_; ++i) {
    const Worker& worker = workers_[i];
    if (worker.state == State::kDone) {
      ended.push_back(i);
      continue;
    }
    const bool at_barrier = worker.state == State::kAtBarrier;
    std::string what = at_barrier ? "barrier at " : std::string(name_of(worker.op)) + " at ";
    what += text_of(worker.site);
    if (!at_barrier) what += " (for lanes " + list_of(lanes_of(worker.mask)) + " of their warp)";
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& one) { return one.first == what; });
    if (group == groups.end()) group = groups.insert(groups.end(), {what, {}});
    group->second.push_back(i);
  }
  std::string text = "reached by only some of the " + std::to_string(count_) + " threads, which wait for ever:";
  for (const auto& group : groups) text += " " + group.first + " by threads " + list_of(group.second) + ";";
  if (!ended.empty()) text += " threads " + list_of(ended) + " have ended;";
  text.pop_back();
  return text;
}

// --- what kernels call ----------------------------------------------------------------------------------------------

int barrier(Barrier kind, bool predicate, Site site) { return current->engine->barrier(kind, predicate, site); }
uint64_t warp(WarpOp op, Mask mask, uint64_t value, int source, Site site) {
  return current->engine->warp(op, mask, value, source, site);
}
int lane() { return current->engine->lane(); }
void* shared(const void* tag, std::size_t bytes, std::size_t alignment, Site site) {
  return current->engine->shared(tag, bytes, alignment, site);
}
void* dynamic_shared() { return current->engine->dynamic_shared(); }
void fail(int32_t status, const char* text) { current->engine->fail(status, text); }

}  // namespace dsk_emulation
