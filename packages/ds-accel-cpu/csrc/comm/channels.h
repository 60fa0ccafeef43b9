// Messages between two ranks of a group, with tags.
//
// Note [Messages]
// From each rank to each other runs a ring of bytes. Sends to one rank go into its ring in the order they were posted.
// A receiver takes bytes out of a ring while it waits for something from there: into the tensor of the first receive
// that was posted with this source (or any) and this tag, else into memory of its own until such a receive is posted.
// So no order of posting blocks another. Whoever waits makes progress with everything that is posted; while nobody
// waits, a thread does, started when the first asynchronous operation does not finish at once. A send is over when the
// last byte is in the ring: its tensor may be changed then.
#pragma once

#include <condition_variable>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "group.h"
#include "job.h"

namespace dsc {

constexpr int32_t kAnyRank = -1;

class Channels {
 public:
  explicit Channels(Group& group);
  // `is_async`: nobody may wait for it soon, so a thread makes progress meanwhile.
  JobPtr send(int32_t to, int32_t tag, const char* data, int64_t bytes, bool is_async);
  JobPtr receive(int32_t from, int32_t tag, char* data, int64_t bytes, bool is_async);
  // Waits for an operation: as long as the group's `timeout_s`, which breaks the group, or for `limit_s` (when not
  // below 0), which does not: false.
  bool wait(const JobPtr& job, double timeout_s, double limit_s, void (*poll)());
  // Gives what is posted `drain_s`, then ends the thread. What is not over fails.
  void stop(double drain_s);

 private:
  struct Operation {
    JobPtr job;
    bool is_send;
    int32_t peer;  // or kAnyRank
    int32_t tag;
    char* data;
    int64_t bytes;
    int64_t moved;
    bool has_begun;
  };
  using OperationPtr = std::shared_ptr<Operation>;

  // A message that came before its receive.
  struct Early {
    int32_t from;
    int32_t tag;
    std::vector<char> data;
    bool is_complete;
    OperationPtr taker;
  };
  class Waiter;
  using EarlyPtr = std::shared_ptr<Early>;

  // What is being read from one rank.
  struct Reading {
    bool is_active = false;
    int32_t tag = 0;
    int64_t bytes = 0;
    int64_t moved = 0;
    OperationPtr taker;
    EarlyPtr early;
  };

  JobPtr post(OperationPtr operation, bool is_async);
  bool progress();  // under the mutex; true when a byte moved or an operation ended
  bool push(int32_t to);
  bool pull(int32_t from);
  bool wants(int32_t from) const;
  void begin_message(int32_t from, int64_t bytes, int32_t tag);
  void end_message(int32_t from);
  void take_early(const OperationPtr& operation);
  void finish(const OperationPtr& operation, int32_t source);
  void check_size(const Operation& operation, int32_t from, int64_t bytes);
  bool depends(const Operation& operation, int32_t rank) const;
  void fail_all(const std::string& text);
  std::string describe(const Operation& operation) const;
  void work();

  Group& group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::deque<OperationPtr>> sends_;  // by receiver
  std::list<OperationPtr> receives_;             // posted and without a message
  std::list<EarlyPtr> early_;                    // in order of arrival
  std::vector<Reading> readings_;                // by sender
  std::list<OperationPtr> open_;                 // everything that is not over
  int32_t waiters_ = 0;
  bool is_stopping_ = false;
  std::unique_ptr<std::thread> worker_;
};

}  // namespace dsc
