#include "queue.h"

#include "collectives.h"

namespace dsc {
namespace {

constexpr auto kNap = std::chrono::milliseconds(50);

}  // namespace

void Queue::run_now(Call call, void (*poll)()) {
  group_.check();
  bool is_free;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_free = calls_.empty() && !is_busy_;
    is_busy_ = is_busy_ || is_free;
  }
  if (!is_free) {
    const JobPtr job = submit(std::move(call));
    wait(*job, -1, poll);
    if (job->state == Job::kFailed) throw Broken(job->error);
    return;
  }
  auto release = [this] {
    const std::lock_guard<std::mutex> lock(mutex_);
    is_busy_ = false;
    changed_.notify_all();
  };
  try {
    run(group_, call, patience_of(call.timeout_s, group_.settings().may_spin, poll));
  } catch (...) {
    release();
    throw;
  }
  release();
}

JobPtr Queue::submit(Call call) {
  group_.check();
  JobPtr job = std::make_shared<Job>();
  const std::lock_guard<std::mutex> lock(mutex_);
  if (is_stopping_) throw Broken("the group was left (destroyed) already");
  calls_.emplace_back(std::move(call), job);
  if (!worker_) worker_ = std::make_unique<std::thread>(&Queue::work, this);
  changed_.notify_all();
  return job;
}

bool Queue::wait(const Job& job, double timeout_s, void (*poll)()) {
  const Patience patience = patience_of(timeout_s < 0 ? 1e9 : timeout_s, false, poll);
  std::unique_lock<std::mutex> lock(mutex_);
  while (!job.is_over()) {
    if (changed_.wait_for(lock, kNap) == std::cv_status::no_timeout) continue;
    if (Clock::now() >= patience.deadline) return job.is_over();
    lock.unlock();
    if (poll != nullptr) poll();
    lock.lock();
  }
  return true;
}

void Queue::work() {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return (!calls_.empty() && !is_busy_) || (is_stopping_ && calls_.empty()); });
    if (calls_.empty()) return;
    const std::pair<Call, JobPtr> next = std::move(calls_.front());
    calls_.pop_front();
    is_busy_ = true;
    lock.unlock();
    try {
      run(group_, next.first, patience_of(next.first.timeout_s, false, nullptr));
      next.second->succeed();
    } catch (const std::exception& error) {
      next.second->fail(error.what());
    }
    lock.lock();
    is_busy_ = false;
    changed_.notify_all();
  }
}

void Queue::stop(double drain_s) {
  {
    std::unique_lock<std::mutex> lock(mutex_);
    is_stopping_ = true;
    changed_.notify_all();
    changed_.wait_for(lock, std::chrono::duration<double>(drain_s), [this] { return calls_.empty() && !is_busy_; });
  }
  group_.leave();
  if (worker_) worker_->join();
  worker_.reset();
}

}  // namespace dsc
