#include "group.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <set>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dsc {

const Dtype kDtypes[] = {
    {"uint8", 1, DS_U8},
    {"int8", 1, DS_I8},
    {"bool", 1, DS_BOOL},
    {"int32", 4, DS_I32},
    {"int64", 8, DS_I64},
    {"float32", 4, DS_F32},
    {"float64", 8, DS_F64},
    {"bfloat16", 2, DS_BF16},
    {"float16", 2, DS_F16},
    {"int16", 2, DS_NONE},
    {"uint16", 2, DS_NONE},
    {"uint32", 4, DS_NONE},
    {"uint64", 8, DS_NONE},
    {"complex32", 4, DS_NONE},
    {"complex64", 8, DS_NONE},
    {"complex128", 16, DS_NONE},
    {"float8_e4m3fn", 1, DS_NONE},
    {"float8_e5m2", 1, DS_NONE},
    {"float8_e4m3fnuz", 1, DS_NONE},
    {"float8_e5m2fnuz", 1, DS_NONE},
    {"float8_e8m0fnu", 1, DS_NONE},
    {"other", 1, DS_NONE},
};
const int32_t kDtypeCount = sizeof(kDtypes) / sizeof(kDtypes[0]);

const char* const kKindNames[] = {"all_reduce", "reduce",  "reduce_scatter", "all_gather", "broadcast",
                                  "gather",     "scatter", "all_to_all",     "barrier"};

namespace {

const char* const kOpNames[] = {"sum", "average", "product", "minimum", "maximum", "and", "or", "xor"};

constexpr int kSpins = 4000;  // 0.1 to 0.2 ms: as long as a slot takes to copy
constexpr int kNapMs = 50;    // then look whether the others are alive

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

bool reached(uint32_t value, uint32_t wanted) { return static_cast<int32_t>(value - wanted) >= 0; }

// Descriptors that a forked child must not keep: a lock lives until its owner closes, a copy in a child does not matter
// for the locks, but the child would keep the memory of a finished group alive.
std::mutex& registry_mutex() {
  static std::mutex* const mutex = new std::mutex;
  return *mutex;
}
std::set<Segment*>& registry() {
  static std::set<Segment*>* const segments = new std::set<Segment*>;
  return *segments;
}
void before_fork() { registry_mutex().lock(); }
void after_fork_in_parent() { registry_mutex().unlock(); }
void after_fork_in_child() {
  for (Segment* segment : registry()) segment->forget();
  registry().clear();
  registry_mutex().unlock();
}

std::string seconds(double value) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4g s", value);
  return text;
}

}  // namespace

Patience patience_of(double timeout_s, bool may_spin, void (*poll)()) {
  Patience patience;
  patience.timeout_s = timeout_s;
  patience.deadline = Clock::now() + std::chrono::microseconds(static_cast<int64_t>(std::min(timeout_s, 1e9) * 1e6));
  patience.may_spin = may_spin;
  patience.poll = poll;
  return patience;
}

Group::Group(int fd, const Settings& settings)
    : settings_(settings),
      segment_(fd, settings.shape, settings.rank),
      process_(::getpid()),
      round_(static_cast<uint32_t>(settings.shape.slots)),
      consumed_(static_cast<size_t>(settings.shape.ranks), round_),
      published_(round_) {
  static const int registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
  (void)registered;
  // Rounds are counted from the number of slots on, so that the first ones find their slots free.
  segment_.state(rank()).ready.value.store(round_);
  for (int32_t peer = 0; peer < ranks(); ++peer) segment_.done(peer, rank()).value.store(round_);
  segment_.attach();
  const std::lock_guard<std::mutex> lock(registry_mutex());
  registry().insert(&segment_);
}

Group::~Group() {
  const std::lock_guard<std::mutex> lock(registry_mutex());
  registry().erase(&segment_);
}

bool Group::is_forked() const { return ::getpid() != process_; }

void Group::check() const {
  if (is_forked()) {
    throw Broken("this group belongs to process " + std::to_string(process_) + ", from which process " +
                 std::to_string(::getpid()) +
                 " was forked: a forked child takes no part in collectives; let it make groups of its own");
  }
  if (segment_.control().broken_by.load(std::memory_order_acquire) != 0) throw Broken(failure());
  if (is_leaving_.load(std::memory_order_acquire)) throw Broken("the group was left (destroyed) already");
}

std::string Group::failure() const {
  const uint32_t by = segment_.control().broken_by.load(std::memory_order_acquire);
  return by == 0 ? std::string() : std::string(segment_.state(static_cast<int32_t>(by) - 1).last_words);
}

void Group::note_failure(const std::string& text) {
  RankState& own = segment_.state(rank());
  std::atomic<uint32_t>& broken = segment_.control().broken_by;
  if (broken.load(std::memory_order_acquire) != 0) return;
  // Only this process writes here, and only before it may have won, so nobody reads half a sentence.
  static std::mutex* const mutex = new std::mutex;
  const std::lock_guard<std::mutex> lock(*mutex);
  if (own.last_words[0] == '\0') {
    std::strncpy(own.last_words + 1, text.c_str() + 1, kLastWords - 2);
    own.last_words[0] = text.empty() ? '?' : text[0];
  }
  uint32_t none = 0;
  if (!broken.compare_exchange_strong(none, static_cast<uint32_t>(rank()) + 1, std::memory_order_acq_rel)) return;
  for (int32_t peer = 0; peer < ranks(); ++peer) ring_bell(segment_.state(peer).bell);
}

void Group::fail(const std::string& text) {
  note_failure(text);
  throw Broken(failure());
}

void Group::leave() {
  is_leaving_.store(true, std::memory_order_release);
  segment_.state(rank()).has_left.store(1, std::memory_order_release);
  for (int32_t peer = 0; peer < ranks(); ++peer) ring_bell(segment_.state(peer).bell);
}

std::string Group::describe(const CallHeader& header) const {
  const bool known = header.kind >= 0 && header.kind < kKinds && header.dtype >= 0 && header.dtype < kDtypeCount;
  if (!known) return "an unknown call";
  std::string text = std::string(kKindNames[header.kind]) + " #" + std::to_string(header.number);
  if (header.kind == kBarrier) return text;
  if (header.kind != kAllToAll) text += " of " + std::to_string(header.bytes) + " bytes";
  text += std::string(" (") + kDtypes[header.dtype].name;
  const bool reduces = header.kind == kAllReduce || header.kind == kReduce || header.kind == kReduceScatter;
  if (reduces && header.op >= 0 && header.op <= DS_BIT_XOR) text += std::string(", ") + kOpNames[header.op];
  if (header.root >= 0 && header.root < ranks()) text += ", root " + name(header.root);
  return text + ")";
}

std::string Group::list(const std::vector<int32_t>& which) const {
  std::string text = which.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < which.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(settings_.names[static_cast<size_t>(which[i])]);
  }
  return text;
}

void Group::watch(const Patience& patience, const std::function<bool(int32_t)>& misses,
                  const std::function<std::string()>& what) {
  check();
  if (patience.poll != nullptr) patience.poll();
  std::vector<int32_t> missing;
  std::vector<int32_t> gone;
  std::vector<int32_t> left;
  for (int32_t peer = 0; peer < ranks(); ++peer) {
    if (peer == rank()) continue;
    const bool has_left = segment_.state(peer).has_left.load(std::memory_order_acquire) != 0;
    const bool is_gone = segment_.is_gone(peer);
    // In this order: what a rank did last is seen only after it is known that it will do no more.
    if (!misses(peer)) continue;
    missing.push_back(peer);
    if (has_left) {
      left.push_back(peer);
    } else if (is_gone) {
      gone.push_back(peer);
    }
  }
  if (missing.empty()) return;
  if (!gone.empty())
    fail(list(gone) + (gone.size() == 1 ? " is gone" : " are gone") +
         " (killed, or ended without leaving the group), while " + name(rank()) + " waited in " + what());
  if (!left.empty())
    fail(list(left) + (left.size() == 1 ? " has" : " have") + " left the group, while " + name(rank()) + " waited in " +
         what());
  if (Clock::now() >= patience.deadline) {
    fail(what() + " timed out on " + name(rank()) + " after " + seconds(patience.timeout_s) + ": " + list(missing) +
         (missing.size() == 1 ? " has" : " have") + " not arrived");
  }
}

void Group::nap(Word& word, uint32_t seen, const Patience& patience, const std::function<bool(int32_t)>& misses,
                const std::function<std::string()>& what) {
  word.sleepers.fetch_add(1, std::memory_order_seq_cst);
  int status = EAGAIN;
  if (word.value.load(std::memory_order_seq_cst) == seen) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(patience.deadline - Clock::now()).count();
    status = futex_wait(word.value, seen, static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(left, kNapMs))));
  }
  word.sleepers.fetch_sub(1, std::memory_order_seq_cst);
  if (status == ETIMEDOUT || status == EINTR) watch(patience, misses, what);
}

template <typename Ready>
void Group::wait(Word& word, const Ready& ready, const std::function<bool(int32_t)>& misses) {
  uint32_t seen = word.value.load(std::memory_order_acquire);
  if (ready(seen)) return;
  if (patience_->may_spin) {
    for (int i = 0; i < kSpins; ++i) {
      relax();
      seen = word.value.load(std::memory_order_acquire);
      if (ready(seen)) return;
    }
  }
  for (;;) {
    seen = word.value.load(std::memory_order_acquire);
    if (ready(seen)) return;
    nap(word, seen, *patience_, misses, [this] { return describe(header_); });
  }
}

void Group::open(const Call& call, const Patience& patience) {
  patience_ = &patience;
  header_.kind = call.kind;
  header_.dtype = call.dtype;
  header_.op = call.op;
  header_.root = call.root;
  header_.number = ++calls_;
  header_.bytes = call.kind == kAllToAll ? 0 : call.bytes;
}

char* Group::acquire(uint32_t round) {
  const uint32_t needed = round + 1 - static_cast<uint32_t>(segment_.shape().slots);
  for (int32_t peer = 0; peer < ranks(); ++peer) {
    if (peer == rank()) continue;
    wait(
        segment_.done(rank(), peer), [needed](uint32_t value) { return reached(value, needed); },
        [this, needed](int32_t other) {
          return !reached(segment_.done(rank(), other).value.load(std::memory_order_acquire), needed);
        });
  }
  return segment_.slot(rank(), round);
}

void Group::publish(uint32_t round) {
  segment_.call(rank(), round) = header_;
  published_ = round + 1;
  set_word(segment_.state(rank()).ready, published_);
}

void Group::compare(int32_t peer, const CallHeader& theirs) {
  const bool same = theirs.kind == header_.kind && theirs.dtype == header_.dtype && theirs.op == header_.op &&
                    theirs.root == header_.root && theirs.number == header_.number && theirs.bytes == header_.bytes;
  if (same) return;
  fail(name(peer) + " called " + describe(theirs) + " while " + name(rank()) + " called " + describe(header_) +
       ": the ranks of a group must call the same collectives in the same order");
}

void Group::arrive(int32_t peer, uint32_t round) {
  const uint32_t needed = round + 1;
  wait(
      segment_.state(peer).ready, [needed](uint32_t value) { return reached(value, needed); },
      [this, needed](int32_t other) {
        return !reached(segment_.state(other).ready.value.load(std::memory_order_acquire), needed);
      });
  compare(peer, segment_.call(peer, round));
}

void Group::consumed(int32_t peer, uint32_t round) { skip(peer, round + 1); }

void Group::skip(int32_t peer, uint32_t round) {
  uint32_t& mine = consumed_[static_cast<size_t>(peer)];
  if (reached(mine, round)) return;
  mine = round;
  set_word(segment_.done(peer, rank()), round);
}

void Group::close() {
  for (int32_t peer = 0; peer < ranks(); ++peer) {
    if (peer != rank()) skip(peer, round_);
  }
  if (!reached(published_, round_)) {
    published_ = round_;
    set_word(segment_.state(rank()).ready, published_);
  }
  patience_ = nullptr;
}

void Group::reduce(const void* const* inputs, int64_t numel, char* out, char* copy, bool past_caches) {
  ds_reduce_ranks_args arguments = {};
  arguments.struct_size = sizeof(arguments);
  arguments.dtype = kDtypes[header_.dtype].code;
  arguments.op = header_.op;
  arguments.count = ranks();
  arguments.numel = numel;
  arguments.inputs = inputs;
  arguments.out = out;
  arguments.copy = copy;
  arguments.past_caches = past_caches;
  ds_exec exec = {};
  exec.struct_size = sizeof(exec);
  exec.threads = 1;
  const int32_t status = settings_.reduce->run(&arguments, &exec);
  if (status != DS_OK) {
    fail(describe(header_) + " is not possible: this reduction is not defined for this dtype (status " +
         std::to_string(status) + ")");
  }
}

}  // namespace dsc
