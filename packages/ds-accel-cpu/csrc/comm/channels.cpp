#include "channels.h"

#include <algorithm>
#include <cstring>

#include "copy.h"

namespace dsc {
namespace {

constexpr int kSpins = 4000;
constexpr auto kLook = std::chrono::milliseconds(200);  // look for dead ranks at least this often while bells ring

struct MessageHeader {
  int64_t bytes;
  int32_t tag;
  int32_t reserved;
};

int64_t up_to_line(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Bytes to move now: all, or as many whole lines as there is room for, in strides that let both sides work at once.
int64_t stride(int64_t wanted, int64_t room, int64_t ring) {
  const int64_t most = std::min(room, ring / 4);
  return wanted <= most ? wanted : most / kLine * kLine;
}

void into_ring(char* ring, int64_t size, uint64_t at, const char* from, int64_t bytes) {
  const int64_t offset = static_cast<int64_t>(at & static_cast<uint64_t>(size - 1));
  const int64_t first = std::min(bytes, size - offset);
  copy(ring + offset, from, first);
  copy(ring, from + first, bytes - first);
}

void out_of_ring(const char* ring, int64_t size, uint64_t at, char* to, int64_t bytes) {
  const int64_t offset = static_cast<int64_t>(at & static_cast<uint64_t>(size - 1));
  const int64_t first = std::min(bytes, size - offset);
  copy(to, ring + offset, first);
  copy(to + first, ring, bytes - first);
}

}  // namespace

Channels::Channels(Group& group)
    : group_(group), sends_(static_cast<size_t>(group.ranks())), readings_(static_cast<size_t>(group.ranks())) {}

JobPtr Channels::send(int32_t to, int32_t tag, const char* data, int64_t bytes, bool is_async) {
  return post(std::make_shared<Operation>(
                  Operation{std::make_shared<Job>(), true, to, tag, const_cast<char*>(data), bytes, 0, false}),
              is_async);
}

JobPtr Channels::receive(int32_t from, int32_t tag, char* data, int64_t bytes, bool is_async) {
  return post(std::make_shared<Operation>(Operation{std::make_shared<Job>(), false, from, tag, data, bytes, 0, false}),
              is_async);
}

JobPtr Channels::post(OperationPtr operation, bool is_async) {
  group_.check();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_stopping_) throw Broken("the group was left (destroyed) already");
  open_.push_back(operation);
  if (operation->is_send) {
    sends_[static_cast<size_t>(operation->peer)].push_back(operation);
  } else {
    take_early(operation);
  }
  progress();
  if (is_async && !operation->job->is_over()) {
    if (!worker_) worker_ = std::make_unique<std::thread>(&Channels::work, this);
    changed_.notify_all();
  }
  return operation->job;
}

// Gives a new receive the earliest message that waits for it, or puts it behind the other receives.
void Channels::take_early(const OperationPtr& operation) {
  for (auto it = early_.begin(); it != early_.end(); ++it) {
    Early& early = **it;
    const bool fits =
        !early.taker && early.tag == operation->tag && (operation->peer == kAnyRank || operation->peer == early.from);
    if (!fits) continue;
    check_size(*operation, early.from, static_cast<int64_t>(early.data.size()));
    if (early.is_complete) {
      copy(operation->data, early.data.data(), operation->bytes);
      finish(operation, early.from);
      early_.erase(it);
    } else {
      early.taker = operation;
    }
    return;
  }
  receives_.push_back(operation);
}

void Channels::check_size(const Operation& operation, int32_t from, int64_t bytes) {
  if (operation.bytes == bytes) return;
  group_.fail(group_.name(from) + " sent " + std::to_string(bytes) + " bytes to " + group_.name(group_.rank()) +
              " with tag " + std::to_string(operation.tag) + ", where a tensor of " + std::to_string(operation.bytes) +
              " bytes is to receive them: both must have the same size");
}

void Channels::finish(const OperationPtr& operation, int32_t source) {
  operation->job->source = source;
  operation->job->succeed();
  open_.remove(operation);
}

bool Channels::progress() {
  bool moved = false;
  for (int32_t peer = 0; peer < group_.ranks(); ++peer) {
    if (!sends_[static_cast<size_t>(peer)].empty()) moved |= push(peer);
  }
  for (int32_t peer = 0; peer < group_.ranks(); ++peer) moved |= pull(peer);
  return moved;
}

bool Channels::push(int32_t to) {
  Segment& segment = group_.segment();
  Channel& channel = segment.channel(group_.rank(), to);
  char* const ring = segment.ring(group_.rank(), to);
  const int64_t size = segment.shape().ring_bytes;
  std::deque<OperationPtr>& queue = sends_[static_cast<size_t>(to)];
  bool moved = false;
  while (!queue.empty()) {
    const OperationPtr operation = queue.front();
    uint64_t head = channel.head.load(std::memory_order_relaxed);
    auto room = [&] { return size - static_cast<int64_t>(head - channel.tail.load(std::memory_order_acquire)); };
    if (!operation->has_begun) {
      if (room() < kLine) return moved;
      const MessageHeader header = {operation->bytes, operation->tag, 0};
      std::memcpy(ring + (head & static_cast<uint64_t>(size - 1)), &header, sizeof(header));
      head += kLine;
      operation->has_begun = true;
    }
    const int64_t bytes = stride(operation->bytes - operation->moved, room(), size);
    into_ring(ring, size, head, operation->data + operation->moved, bytes);
    operation->moved += bytes;
    head += static_cast<uint64_t>(up_to_line(bytes));
    const bool is_new = head != channel.head.load(std::memory_order_relaxed);
    channel.head.store(head, std::memory_order_release);
    if (is_new) ring_bell(segment.state(to).bell);
    moved |= is_new;
    if (operation->moved < operation->bytes) {
      if (bytes == 0) return moved;
      continue;
    }
    queue.pop_front();
    finish(operation, -1);
    ring_bell(segment.state(group_.rank()).bell);
    moved = true;
  }
  return moved;
}

bool Channels::wants(int32_t from) const {
  const Reading& reading = readings_[static_cast<size_t>(from)];
  if (reading.is_active && (reading.taker || reading.early->taker)) return true;
  return std::any_of(receives_.begin(), receives_.end(), [from](const OperationPtr& operation) {
    return operation->peer == kAnyRank || operation->peer == from;
  });
}

bool Channels::pull(int32_t from) {
  Segment& segment = group_.segment();
  Channel& channel = segment.channel(from, group_.rank());
  const char* const ring = segment.ring(from, group_.rank());
  const int64_t size = segment.shape().ring_bytes;
  Reading& reading = readings_[static_cast<size_t>(from)];
  bool moved = false;
  while (wants(from)) {
    uint64_t tail = channel.tail.load(std::memory_order_relaxed);
    auto there = [&] { return static_cast<int64_t>(channel.head.load(std::memory_order_acquire) - tail); };
    if (!reading.is_active) {
      if (there() < kLine) return moved;
      MessageHeader header;
      std::memcpy(&header, ring + (tail & static_cast<uint64_t>(size - 1)), sizeof(header));
      tail += kLine;
      channel.tail.store(tail, std::memory_order_release);
      begin_message(from, header.bytes, header.tag);
      moved = true;
    }
    const int64_t bytes = stride(reading.bytes - reading.moved, there(), size);
    char* const to = reading.taker ? reading.taker->data : reading.early->data.data();
    out_of_ring(ring, size, tail, to + reading.moved, bytes);
    reading.moved += bytes;
    channel.tail.store(tail + static_cast<uint64_t>(up_to_line(bytes)), std::memory_order_release);
    if (reading.moved < reading.bytes) {
      if (bytes == 0) return moved;
      ring_bell(segment.state(from).bell);
      moved = true;
      continue;
    }
    end_message(from);
    ring_bell(segment.state(from).bell);
    moved = true;
  }
  return moved;
}

void Channels::begin_message(int32_t from, int64_t bytes, int32_t tag) {
  Reading& reading = readings_[static_cast<size_t>(from)];
  const auto fits = [from, tag](const OperationPtr& operation) {
    return operation->tag == tag && (operation->peer == kAnyRank || operation->peer == from);
  };
  const auto taker = std::find_if(receives_.begin(), receives_.end(), fits);
  reading.is_active = true;
  reading.tag = tag;
  reading.bytes = bytes;
  reading.moved = 0;
  if (taker != receives_.end()) {
    check_size(**taker, from, bytes);
    reading.taker = *taker;
    receives_.erase(taker);
    return;
  }
  reading.early =
      std::make_shared<Early>(Early{from, tag, std::vector<char>(static_cast<size_t>(bytes)), false, nullptr});
  early_.push_back(reading.early);
}

void Channels::end_message(int32_t from) {
  Reading& reading = readings_[static_cast<size_t>(from)];
  if (reading.taker) {
    finish(reading.taker, from);
    ring_bell(group_.segment().state(group_.rank()).bell);
  } else {
    reading.early->is_complete = true;
    if (reading.early->taker) {
      copy(reading.early->taker->data, reading.early->data.data(), reading.bytes);
      finish(reading.early->taker, from);
      early_.remove(reading.early);
      ring_bell(group_.segment().state(group_.rank()).bell);
    }
  }
  reading = Reading();
}

bool Channels::depends(const Operation& operation, int32_t rank) const {
  if (operation.peer == rank) return true;
  if (operation.peer != kAnyRank) return false;
  Segment& segment = group_.segment();
  for (int32_t peer = 0; peer < group_.ranks(); ++peer) {
    const bool may_send = peer != group_.rank() && segment.state(peer).has_left.load() == 0;
    if (may_send) return segment.state(rank).has_left.load() == 0;
  }
  return true;
}

std::string Channels::describe(const Operation& operation) const {
  std::string text = operation.is_send ? "send to " : "recv from ";
  text += operation.peer == kAnyRank ? "any rank" : group_.name(operation.peer);
  return text + " of " + std::to_string(operation.bytes) + " bytes with tag " + std::to_string(operation.tag);
}

void Channels::fail_all(const std::string& text) {
  for (const OperationPtr& operation : open_) operation->job->fail(text);
  open_.clear();
  receives_.clear();
  for (auto& queue : sends_) queue.clear();
  ring_bell(group_.segment().state(group_.rank()).bell);
}

// While someone waits, the thread leaves the work to him.
class Channels::Waiter {
 public:
  explicit Waiter(Channels& channels) : channels_(channels) {
    const std::lock_guard<std::mutex> lock(channels_.mutex_);
    ++channels_.waiters_;
  }
  ~Waiter() {
    const std::lock_guard<std::mutex> lock(channels_.mutex_);
    if (--channels_.waiters_ == 0 && channels_.worker_ && !channels_.open_.empty()) channels_.changed_.notify_all();
  }
  Waiter(const Waiter&) = delete;
  Waiter& operator=(const Waiter&) = delete;

 private:
  Channels& channels_;
};

bool Channels::wait(const JobPtr& job, double timeout_s, double limit_s, void (*poll)()) {
  if (job->is_over()) return true;
  group_.check();
  OperationPtr operation;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const OperationPtr& each : open_) {
      if (each->job == job) operation = each;
    }
  }
  if (!operation) return true;
  const Waiter waiter(*this);
  const Patience patience = patience_of(limit_s < 0 ? timeout_s : 1e9, group_.settings().may_spin, poll);
  const Patience limit = patience_of(limit_s < 0 ? 1e9 : limit_s, false, nullptr);
  Word& bell = group_.segment().state(group_.rank()).bell;
  auto advance = [this] {
    const std::lock_guard<std::mutex> lock(mutex_);
    return progress();
  };
  auto misses = [&](int32_t rank) {
    advance();
    return !job->is_over() && depends(*operation, rank);
  };
  auto what = [&] { return describe(*operation); };
  Clock::time_point looked = Clock::now();
  try {
    for (;;) {
      const uint32_t seen = bell.value.load(std::memory_order_acquire);
      const bool moved = advance();
      if (job->is_over()) return true;
      const Clock::time_point now = Clock::now();
      if (now >= limit.deadline) return false;
      if (now - looked > kLook) {
        looked = now;
        group_.watch(patience, misses, what);
      }
      if (moved) continue;
      for (int i = 0; patience.may_spin && i < kSpins && bell.value.load(std::memory_order_acquire) == seen; ++i) {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      if (bell.value.load(std::memory_order_acquire) == seen) group_.nap(bell, seen, patience, misses, what);
    }
  } catch (const Broken& error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    fail_all(error.what());
    return true;
  }
}

void Channels::work() {
  const Patience patience = patience_of(1e9, false, nullptr);
  Word& bell = group_.segment().state(group_.rank()).bell;
  auto misses = [this](int32_t rank) {
    const std::lock_guard<std::mutex> lock(mutex_);
    progress();
    return std::any_of(open_.begin(), open_.end(),
                       [&](const OperationPtr& operation) { return depends(*operation, rank); });
  };
  auto what = [this] {
    const std::lock_guard<std::mutex> lock(mutex_);
    return open_.empty() ? std::string("a message") : describe(*open_.front());
  };
  for (;;) {
    const uint32_t seen = bell.value.load(std::memory_order_acquire);
    try {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return is_stopping_ || (!open_.empty() && waiters_ == 0); });
        if (is_stopping_) return;
        if (progress() || open_.empty()) continue;
      }
      group_.nap(bell, seen, patience, misses, what);
    } catch (const std::exception& error) {
      const std::lock_guard<std::mutex> lock(mutex_);
      fail_all(error.what());
    }
  }
}

void Channels::stop(double drain_s) {
  const Clock::time_point end = Clock::now() + std::chrono::microseconds(static_cast<int64_t>(drain_s * 1e6));
  Word& bell = group_.segment().state(group_.rank()).bell;
  const Patience patience = patience_of(1e9, false, nullptr);
  for (;;) {
    const uint32_t seen = bell.value.load(std::memory_order_acquire);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      // Only sends: nobody will see what is still received.
      const auto is_send = [](const OperationPtr& operation) { return operation->is_send; };
      if (!group_.failure().empty() || std::none_of(open_.begin(), open_.end(), is_send)) break;
      if (progress()) continue;
    }
    if (Clock::now() >= end) break;
    try {
      group_.nap(bell, seen, patience, [](int32_t) { return false; }, [] { return std::string(); });
    } catch (const Broken&) {
      break;
    }
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_stopping_ = true;
    fail_all("the group was left (destroyed) before this message was through");
    changed_.notify_all();
  }
  if (worker_) worker_->join();
  worker_.reset();
}

}  // namespace dsc
