// A thread with an io_uring of its own, that keeps a given number of blocks under way.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "ring.h"
#include "transfer.h"

namespace dsk {

// Note [The thread of a lane]
// A request is larger than what may be under way, so somebody has to submit its next block when one ends. That is a
// thread of ours which sleeps in io_uring_enter meanwhile and never takes Python's lock: training goes on as if the
// disk had a DMA engine of its own. New work reaches the thread through an eventfd that its ring polls. Being the only
// one that enters the ring, it may ask for completions to be handled only when it waits for them, which saves
// interrupts.

// Asked before a block is submitted: how many of its bytes to submit, or a negative errno to fail it with. For tests.
using Before = std::function<int64_t(bool writes, int fd, uint64_t offset, uint64_t nbytes)>;

struct LaneSettings {
  unsigned depth;
  uint64_t block_bytes;
  bool overlap;        // start a block when one ends; else up to `depth` when all have ended
  bool single_submit;  // tell the kernel of each block by a call of its own
  unsigned buffers;    // registered buffers, beside those for staging
  std::string name;    // of the thread
  Before before;
};

struct LaneFigures {
  std::atomic<uint64_t> blocks{0};        // submitted, continued ones counted again
  std::atomic<uint64_t> fixed_blocks{0};  // of these, from or to registered memory
  std::atomic<uint64_t> submissions{0};   // system calls that submitted blocks
  std::atomic<uint64_t> most_under_way{0};
};

class Lane {
 public:
  // Throws std::system_error when there is no ring to be had.
  explicit Lane(LaneSettings settings);
  // Joins the thread; see `finish`.
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  void add(std::vector<Span> spans);

  // Moves all that was added, then ends the thread. Any number of times, from one thread.
  void finish();

  // Registers memory with the ring, or takes it back when `nbytes` is 0; false when the kernel or the table refuses.
  bool set_buffer(unsigned index, char* memory, uint64_t nbytes);

  const LaneFigures& figures() const { return figures_; }

 private:
  // A block that is under way, or a place for one.
  struct Slot {
    std::shared_ptr<Transfer> transfer;  // null when free
    uint64_t start = 0, nbytes = 0;      // in the tensor
    Way way = Way::kDirect;
    char* memory = nullptr;  // what the kernel reads or writes: the tensor, or the slot's staging buffer
    uint64_t offset = 0, length = 0, done = 0;
    int fd = -1;
    int buffer = -1;  // registered buffer that holds `memory`
    bool may_block = false;
    char* staging = nullptr;
  };
  struct Buffer {
    char* memory = nullptr;
    uint64_t nbytes = 0;
  };

  void run(std::promise<void>& started);
  void serve();
  bool take();
  bool is_queue_empty();
  void fill();
  bool start_next();
  void place(Slot& slot);
  void submit(unsigned index);
  void complete(unsigned index, int64_t result);
  void end(unsigned index, int code);
  int find_buffer(const char* memory, uint64_t nbytes) const;
  bool stage(unsigned index);
  bool assign_buffer(unsigned index, char* memory, uint64_t nbytes);
  void watch();
  void enter(unsigned at_least);
  void break_down(int code);

  const LaneSettings settings_;
  LaneFigures figures_;

  std::mutex mutex_;  // guards what follows, up to the blank line
  std::condition_variable wake_;
  std::deque<Span> incoming_;
  std::vector<std::packaged_task<bool()>> commands_;
  bool closing_ = false;
  bool in_kernel_ = false;

  // Only the lane's thread uses what follows.
  std::unique_ptr<Ring> ring_;
  int event_ = -1;
  bool watching_ = false;
  bool has_table_ = false;
  std::deque<Span> queue_;
  std::vector<Slot> slots_;
  std::vector<unsigned> free_;
  std::vector<Buffer> buffers_;
  unsigned under_way_ = 0;
  unsigned prepared_ = 0;  // blocks, since the last enter
  int broken_ = 0;

  std::thread thread_;
};

}  // namespace dsk
