// One request: memory, a place in a file, and what has become of it. Shared by Python and the lanes that move its
// spans.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>

namespace dsk {

// How bytes travel; the values are ds_core.aio.pieces.Way in order.
enum class Way : int { kDirect = 0, kStaged = 1, kBuffered = 2 };

struct Transfer {
  char* memory;
  uint64_t offset;  // of memory[0] in the file
  bool writes;
  int direct_fd;  // -1 when nothing moves past the page cache
  int cached_fd;  // -1 when nothing moves through it

  Transfer(char* memory_, uint64_t offset_, uint64_t nbytes, bool writes_, int direct_fd_, int cached_fd_)
      : memory(memory_), offset(offset_), writes(writes_), direct_fd(direct_fd_), cached_fd(cached_fd_), left_(nbytes) {
    done_ = nbytes == 0;
  }

  // Says that a block was moved, failed, or will not be tried; the last byte ends the request.
  void settle(uint64_t nbytes) {
    if (left_.fetch_sub(nbytes, std::memory_order_acq_rel) != nbytes) return;
    std::lock_guard<std::mutex> lock(mutex_);
    done_ = true;
    changed_.notify_all();
  }

  // The first failure stays. `position` is where in the file the block that failed begins.
  void fail(int code, uint64_t position) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (code_ == 0) {
      code_ = code;
      position_ = position;
    }
    failed_.store(true, std::memory_order_release);
  }

  bool failed() const { return failed_.load(std::memory_order_acquire); }

  // True when the request is done within the time.
  bool wait_for(std::chrono::milliseconds time) {
    std::unique_lock<std::mutex> lock(mutex_);
    return changed_.wait_for(lock, time, [this] { return done_; });
  }

  bool done() {
    std::lock_guard<std::mutex> lock(mutex_);
    return done_;
  }
  int code() {
    std::lock_guard<std::mutex> lock(mutex_);
    return code_;
  }
  uint64_t position() {
    std::lock_guard<std::mutex> lock(mutex_);
    return position_;
  }

  std::atomic<bool> direct_refused{false};  // the file system took O_DIRECT at open and not at a block

 private:
  std::atomic<uint64_t> left_;
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  int code_ = 0;
  uint64_t position_ = 0;
};

// A run of bytes that travel alike; a lane cuts blocks off its front.
struct Span {
  std::shared_ptr<Transfer> transfer;
  uint64_t start;
  uint64_t nbytes;
  Way way;
};

}  // namespace dsk
