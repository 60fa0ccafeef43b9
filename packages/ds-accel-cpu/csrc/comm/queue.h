// Collectives of a group in the order of issue: in the calling thread when nothing is under way, else in a worker.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

#include "group.h"
#include "job.h"

namespace dsc {

class Queue {
 public:
  explicit Queue(Group& group) : group_(group) {}
  // Carries the call out before it returns. Throws what `dsc::run` throws.
  void run_now(Call call, void (*poll)());
  // Carries the call out in the worker, which is started at first use. Its tensors must live until the job is over.
  JobPtr submit(Call call);
  // Waits for a job: forever when `timeout_s` is below 0. False when the time is over.
  bool wait(const Job& job, double timeout_s, void (*poll)());
  // Gives what is under way `drain_s`, then makes the group leave and ends the worker.
  void stop(double drain_s);

 private:
  void work();

  Group& group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::pair<Call, JobPtr>> calls_;
  bool is_busy_ = false;  // someone carries a call out
  bool is_stopping_ = false;
  std::unique_ptr<std::thread> worker_;
};

}  // namespace dsc
