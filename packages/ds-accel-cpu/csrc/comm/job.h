// Something asynchronous that is under way.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

namespace dsc {

struct Job {
  enum State : int32_t { kRunning, kDone, kFailed };
  std::atomic<int32_t> state{kRunning};
  std::string error;    // written before the state becomes kFailed
  int32_t source = -1;  // of a received message; written before the state becomes kDone

  bool is_over() const { return state.load(std::memory_order_acquire) != kRunning; }
  void succeed() { state.store(kDone, std::memory_order_release); }
  void fail(const std::string& text) {
    error = text;
    state.store(kFailed, std::memory_order_release);
  }
};

using JobPtr = std::shared_ptr<Job>;

}  // namespace dsc
