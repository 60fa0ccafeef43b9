// One rank's end of a group: rounds over the slots, waiting, and what happens when a rank fails.
//
// Note [Rounds]
// A collective is a number of rounds, counted through the life of the group. In a round a rank waits until the others
// have consumed what its slot held (`acquire`), fills the slot, and publishes it together with a header that says which
// call it belongs to. Then it takes what it needs of each other rank in turn (`arrive`), and says so (`consumed`). All
// ranks count the same rounds, also those that have nothing to publish or take in some of them. In the first round of a
// call every rank hears of every other (`meet`), so ranks that called different things find out, and say, at once.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "ds_kernel.h"
#include "segment.h"

namespace dsc {

using Clock = std::chrono::steady_clock;

// The group cannot be used any more, or a call timed out.
class Broken : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// How long, and how, to wait.
struct Patience {
  double timeout_s = 0;
  Clock::time_point deadline = Clock::time_point::max();
  bool may_spin = false;
  void (*poll)() = nullptr;  // looks for signals; throws when the wait is to end
};

Patience patience_of(double timeout_s, bool may_spin, void (*poll)());

struct Dtype {
  const char* name;
  int32_t item;  // bytes of an element
  int32_t code;  // of ds_kernel.h; DS_NONE when it cannot be reduced
};
extern const Dtype kDtypes[];
extern const int32_t kDtypeCount;

enum Kind : int32_t {
  kAllReduce,
  kReduce,
  kReduceScatter,
  kAllGather,
  kBroadcast,
  kGather,
  kScatter,
  kAllToAll,
  kBarrier,
  kKinds
};
extern const char* const kKindNames[];

// One call of a collective. `in` and `out` hold one address for each rank, or one; see collectives.h.
struct Call {
  int32_t kind = kBarrier;
  int32_t dtype = 0;
  int32_t op = DS_SUM;
  int32_t root = -1;
  int64_t bytes = 0;
  std::vector<const char*> in;
  std::vector<char*> out;
  std::vector<int64_t> in_bytes;   // all_to_all
  std::vector<int64_t> out_bytes;  // all_to_all
  double timeout_s = 0;
};

struct Settings {
  Shape shape;
  int32_t rank = 0;
  std::vector<int32_t> names;  // numbers of the ranks in messages
  bool may_spin = false;
  const ds_kernel_entry* reduce = nullptr;
};

class Group {
 public:
  Group(int fd, const Settings& settings);
  ~Group();

  int32_t rank() const { return settings_.rank; }
  int32_t ranks() const { return settings_.shape.ranks; }
  const Settings& settings() const { return settings_; }
  Segment& segment() { return segment_; }
  std::string name(int32_t rank) const { return "rank " + std::to_string(settings_.names[static_cast<size_t>(rank)]); }

  // ---- state ----
  // Throws when the group is broken, left, or belongs to the process this one was forked from.
  void check() const;
  bool is_forked() const;
  // The first failure, or empty.
  std::string failure() const;
  // Breaks the group for all ranks, unless it is broken already, and throws what broke it.
  [[noreturn]] void fail(const std::string& text);
  // As `fail` without the throw.
  void note_failure(const std::string& text);
  // Says that this rank goes; waits in progress end with an error.
  void leave();

  // ---- rounds; one thread at a time ----
  void open(const Call& call, const Patience& patience);  // begins a call
  void close();                                           // ends it: every round of it counts as published and consumed
  uint32_t round() const { return round_; }
  void next_round(uint32_t rounds = 1) { round_ += rounds; }
  char* acquire(uint32_t round);
  void publish(uint32_t round);
  void arrive(int32_t peer, uint32_t round);
  void consumed(int32_t peer, uint32_t round);
  // Everything up to `round` (excluded) of `peer` is not needed.
  void skip(int32_t peer, uint32_t round);
  const char* slot(int32_t peer, uint32_t round) { return segment_.slot(peer, round); }
  void reduce(const void* const* inputs, int64_t numel, char* out, char* copy, bool past_caches);

  // Sleeps until the word leaves `seen` or a short time is over, then throws if there is a reason to stop waiting.
  // `misses(rank)` tells whether the wait depends on that rank; `what` says for the message what is waited for.
  void nap(Word& word, uint32_t seen, const Patience& patience, const std::function<bool(int32_t)>& misses,
           const std::function<std::string()>& what);
  // Throws if there is a reason to stop waiting.
  void watch(const Patience& patience, const std::function<bool(int32_t)>& misses,
             const std::function<std::string()>& what);

  std::string describe(const CallHeader& header) const;

 private:
  template <typename Ready>
  void wait(Word& word, const Ready& ready, const std::function<bool(int32_t)>& misses);
  void compare(int32_t peer, const CallHeader& theirs);
  std::string list(const std::vector<int32_t>& ranks) const;

  Settings settings_;
  Segment segment_;
  int64_t process_;
  std::atomic<bool> is_leaving_{false};
  uint32_t round_;
  uint64_t calls_ = 0;
  CallHeader header_ = {};
  const Patience* patience_ = nullptr;
  std::vector<uint32_t> consumed_;  // what `done` says of each peer's rounds
  uint32_t published_;
};

}  // namespace dsc
