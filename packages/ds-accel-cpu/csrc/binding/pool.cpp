#include "pool.h"

#include <pthread.h>

#include <atomic>
#include <cfenv>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace dsk {
namespace {

constexpr int32_t kMaxWorkers = 1023;
constexpr auto kSpin = std::chrono::microseconds(20);  // then sleep: another library's threads may want the core

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Note [Joining a job]
// A worker takes part only if it wakes while the job is open; the caller closes the job when no task is left, then
// waits for those that joined. So a worker that the kernel scheduler left asleep never delays a call.
class Pool {
 public:
  bool try_run(int32_t threads, int64_t tasks, ds_task_fn task, void* context) {
    std::unique_lock<std::mutex> busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    const int32_t helpers = grow(static_cast<int32_t>(tasks < threads ? tasks : threads) - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      tasks_ = tasks;
      next_.store(0, std::memory_order_relaxed);
      seats_ = helpers;
      std::fegetenv(&environment_);
      generation_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work(task, context, tasks);
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;
    done_.wait(lock, [this] { return active_ == 0; });
    return true;
  }

  int32_t workers() const { return workers_.load(std::memory_order_relaxed); }

 private:
  // At least `wanted` workers if the system lets us; returns how many there are, at most `wanted`.
  int32_t grow(int32_t wanted) {
    wanted = wanted < kMaxWorkers ? wanted : kMaxWorkers;
    while (workers_.load(std::memory_order_relaxed) < wanted) {
      try {
        std::thread(&Pool::loop, this, generation_.load(std::memory_order_relaxed)).detach();
      } catch (const std::system_error&) {
        break;
      }
      workers_.fetch_add(1, std::memory_order_relaxed);
    }
    return workers_.load(std::memory_order_relaxed) < wanted ? workers_.load(std::memory_order_relaxed) : wanted;
  }

  void work(ds_task_fn task, void* context, int64_t tasks) {
    for (int64_t i = next_.fetch_add(1, std::memory_order_relaxed); i < tasks;
         i = next_.fetch_add(1, std::memory_order_relaxed)) {
      task(context, i);
    }
  }

  bool spin(uint64_t seen) {
    const auto until = std::chrono::steady_clock::now() + kSpin;
    while (std::chrono::steady_clock::now() < until) {
      for (int i = 0; i < 16; ++i) {
        if (generation_.load(std::memory_order_acquire) != seen) return true;
        relax();
      }
    }
    return false;
  }

  [[noreturn]] void loop(uint64_t seen) {
    for (;;) {
      const bool ready = spin(seen);
      std::unique_lock<std::mutex> lock(mutex_);
      if (!ready) wake_.wait(lock, [this, seen] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (seats_ == 0) continue;
      --seats_;
      ++active_;
      const ds_task_fn task = task_;
      void* const context = context_;
      const int64_t tasks = tasks_;
      const std::fenv_t environment = environment_;
      lock.unlock();
      std::fesetenv(&environment);  // the caller's rounding and flush-to-zero, so that threads cannot differ
      work(task, context, tasks);
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex busy_;  // held by the caller for a whole call
  std::mutex mutex_;
  std::condition_variable wake_;
  std::condition_variable done_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<int64_t> next_{0};
  std::atomic<int32_t> workers_{0};
  std::fenv_t environment_{};
  ds_task_fn task_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  int32_t seats_ = 0;   // workers that may still join the job
  int32_t active_ = 0;  // workers inside the job
};

std::atomic<Pool*> the_pool{nullptr};

std::atomic<GompParallel> the_runtime{nullptr};

// In a forked child no worker lives and any lock may be held: forget the parent's pool, its memory is shared pages.
void forget_threads() {
  the_pool.store(nullptr, std::memory_order_relaxed);
  the_runtime.store(nullptr, std::memory_order_relaxed);
}

void forget_threads_in_children() {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_threads);
  (void)registered;
}

Pool& pool() {
  Pool* existing = the_pool.load(std::memory_order_acquire);
  if (existing != nullptr) return *existing;
  forget_threads_in_children();
  Pool* fresh = new Pool();
  if (the_pool.compare_exchange_strong(existing, fresh, std::memory_order_acq_rel)) return *fresh;
  delete fresh;
  return *existing;
}

struct BorrowedJob {
  ds_task_fn task;
  void* context;
  int64_t tasks;
  std::fenv_t environment;
  std::atomic<int64_t> next{0};
};

void run_borrowed(GompParallel run, int32_t threads, int64_t tasks, ds_task_fn task, void* context) {
  BorrowedJob job = {task, context, tasks, {}, {0}};
  std::fegetenv(&job.environment);
  auto body = [](void* data) {
    BorrowedJob& shared = *static_cast<BorrowedJob*>(data);
    std::fenv_t own;
    std::fegetenv(&own);
    std::fesetenv(&shared.environment);  // as in Pool::loop; the thread is not ours, so put its own back
    for (int64_t i = shared.next.fetch_add(1, std::memory_order_relaxed); i < shared.tasks;
         i = shared.next.fetch_add(1, std::memory_order_relaxed)) {
      shared.task(shared.context, i);
    }
    std::fesetenv(&own);
  };
  run(body, &job, static_cast<unsigned>(tasks < threads ? tasks : threads), 0);
}

}  // namespace

void parallel_for(void*, int32_t threads, int64_t tasks, ds_task_fn task, void* context) {
  if (threads > 1 && tasks > 1) {
    const GompParallel run = the_runtime.load(std::memory_order_acquire);
    if (run != nullptr) return run_borrowed(run, threads, tasks, task, context);
    if (pool().try_run(threads, tasks, task, context)) return;
  }
  for (int64_t i = 0; i < tasks; ++i) task(context, i);
}

void borrow_threads(GompParallel run) {
  forget_threads_in_children();
  the_runtime.store(run, std::memory_order_release);
}

bool is_borrowing() { return the_runtime.load(std::memory_order_acquire) != nullptr; }

int32_t worker_count() {
  Pool* existing = the_pool.load(std::memory_order_acquire);
  return existing == nullptr ? 0 : existing->workers();
}

}  // namespace dsk
