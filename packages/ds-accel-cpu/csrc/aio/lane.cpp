#include "lane.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

namespace dsk {
namespace {

constexpr uint64_t kAlignment = 4096;      // ds_core.aio.contract.ALIGNMENT
constexpr uint64_t kLongest = 1u << 30;    // bytes of one operation; the kernel's limit is a little under 2 GiB
constexpr uint64_t kWatch = ~uint64_t{0};  // user_data of the poll of the eventfd

// Signals are for the threads that Python knows; one that arrives here would be lost on it.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

 private:
  sigset_t before_;
};

}  // namespace

Lane::Lane(LaneSettings settings) : settings_(std::move(settings)) {
  event_ = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (event_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
  std::promise<void> started;
  std::future<void> is_started = started.get_future();
  try {
    SignalsBlocked blocked;
    thread_ = std::thread([this, &started] { run(started); });
    is_started.get();
  } catch (...) {
    if (thread_.joinable()) thread_.join();
    ::close(event_);
    throw;
  }
}

Lane::~Lane() {
  finish();
  for (Slot& slot : slots_) {
    if (slot.staging != nullptr) ::munmap(slot.staging, settings_.block_bytes);
  }
  ::close(event_);
}

void Lane::add(std::vector<Span> spans) {
  bool must_wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Span& span : spans) incoming_.push_back(std::move(span));
    must_wake = in_kernel_;
  }
  wake_.notify_one();
  if (must_wake) ::eventfd_write(event_, 1);
}

void Lane::finish() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closing_ = true;
  }
  wake_.notify_one();
  if (thread_.joinable()) thread_.join();
}

bool Lane::set_buffer(unsigned index, char* memory, uint64_t nbytes) {
  std::packaged_task<bool()> command([=] { return assign_buffer(settings_.depth + index, memory, nbytes); });
  std::future<bool> answer = command.get_future();
  bool must_wake;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closing_ || index >= settings_.buffers) return false;
    commands_.push_back(std::move(command));
    must_wake = in_kernel_;
  }
  wake_.notify_one();
  if (must_wake) ::eventfd_write(event_, 1);
  return answer.get();
}

void Lane::run(std::promise<void>& started) {
  pthread_setname_np(pthread_self(), settings_.name.substr(0, 15).c_str());
  try {
    ring_ = std::make_unique<Ring>(settings_.depth + 1);
    slots_.resize(settings_.depth);
    buffers_.resize(settings_.depth + settings_.buffers);
    for (unsigned index = settings_.depth; index-- > 0;) free_.push_back(index);
    has_table_ = ring_->supports(uapi::kReadFixed) && ring_->supports(uapi::kWriteFixed) &&
                 ring_->make_buffer_table(static_cast<unsigned>(buffers_.size()));
  } catch (...) {
    started.set_exception(std::current_exception());
    return;
  }
  started.set_value();
  serve();
  ring_.reset();
}

void Lane::serve() {
  while (take()) {
    fill();
    if (under_way_ == 0) continue;
    watch();
    bool may_sleep;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      may_sleep = in_kernel_ = incoming_.empty() && commands_.empty();
    }
    enter(may_sleep ? 1 : 0);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      in_kernel_ = false;
    }
    uapi::Cqe done;
    while (ring_->reap(done)) {
      if (done.user_data == kWatch) {
        uint64_t count;
        (void)::eventfd_read(event_, &count);
        watching_ = false;
      } else if (slots_[done.user_data].transfer != nullptr) {  // null after a breakdown
        complete(static_cast<unsigned>(done.user_data), done.result);
      }
    }
  }
}

// Fetches new work, and sleeps when there is nothing at all to do; false when the lane ends.
bool Lane::take() {
  std::vector<std::packaged_task<bool()>> commands;
  {
    std::unique_lock<std::mutex> lock(mutex_);
    if (under_way_ == 0 && queue_.empty()) {
      wake_.wait(lock, [this] { return closing_ || !incoming_.empty() || !commands_.empty(); });
    }
    for (Span& span : incoming_) queue_.push_back(std::move(span));
    incoming_.clear();
    commands.swap(commands_);
    if (closing_ && under_way_ == 0 && queue_.empty() && commands.empty()) return false;
  }
  for (auto& command : commands) command();
  return true;
}

void Lane::fill() {
  if (!settings_.overlap && under_way_ > 0) return;
  while (!free_.empty() && start_next()) {
  }
}

// Starts the next block of the queue; false when there is none.
bool Lane::start_next() {
  while (!queue_.empty()) {
    Span& span = queue_.front();
    if (span.transfer->failed() || broken_ != 0) {  // the rest of a failed request is not tried
      if (broken_ != 0) span.transfer->fail(broken_, span.transfer->offset + span.start);
      const std::shared_ptr<Transfer> transfer = span.transfer;
      const uint64_t nbytes = span.nbytes;
      queue_.pop_front();
      transfer->settle(nbytes);
      continue;
    }
    const unsigned index = free_.back();
    free_.pop_back();
    Slot& slot = slots_[index];
    slot.transfer = span.transfer;
    slot.start = span.start;
    slot.nbytes = std::min(span.nbytes, settings_.block_bytes);
    slot.way = span.way;
    span.start += slot.nbytes;
    span.nbytes -= slot.nbytes;
    if (span.nbytes == 0) queue_.pop_front();
    ++under_way_;
    if (slot.way == Way::kStaged && !stage(index)) {
      end(index, ENOMEM);
      return true;
    }
    place(slot);
    submit(index);
    return true;
  }
  return false;
}

// Says what the kernel is to move for a block, from its beginning.
void Lane::place(Slot& slot) {
  const Transfer& transfer = *slot.transfer;
  slot.memory = transfer.memory + slot.start;
  slot.offset = transfer.offset + slot.start;
  slot.length = slot.nbytes;
  slot.done = 0;
  slot.may_block = false;
  // A descriptor whose O_DIRECT was cleared goes through the page cache as well as the other one.
  const bool cached = slot.way == Way::kBuffered && transfer.cached_fd >= 0;
  slot.fd = cached ? transfer.cached_fd : transfer.direct_fd;
  if (slot.way == Way::kStaged) {
    slot.memory = slot.staging;
    if (transfer.writes) {
      std::memcpy(slot.staging, transfer.memory + slot.start, slot.nbytes);
    } else {  // whole blocks around what is asked for
      const uint64_t before = slot.offset % kAlignment;
      slot.offset -= before;
      slot.length = (before + slot.nbytes + kAlignment - 1) / kAlignment * kAlignment;
    }
  }
  slot.buffer = slot.way == Way::kBuffered ? -1 : find_buffer(slot.memory, slot.length);
}

// Prepares what is left of a block.
void Lane::submit(unsigned index) {
  Slot& slot = slots_[index];
  const bool writes = slot.transfer->writes;
  uint64_t length = std::min(slot.length - slot.done, kLongest);
  if (settings_.before) {
    const int64_t answer = settings_.before(writes, slot.fd, slot.offset + slot.done, length);
    if (answer <= 0) return complete(index, answer);
    length = std::min(length, static_cast<uint64_t>(answer));
  }
  const bool fixed = slot.buffer >= 0;
  uapi::Sqe& sqe = ring_->prepare();
  sqe.opcode = writes ? (fixed ? uapi::kWriteFixed : uapi::kWrite) : (fixed ? uapi::kReadFixed : uapi::kRead);
  sqe.flags = slot.may_block ? uapi::kAlwaysAsync : 0;
  sqe.fd = slot.fd;
  sqe.offset = slot.offset + slot.done;
  sqe.address = reinterpret_cast<uint64_t>(slot.memory + slot.done);
  sqe.length = static_cast<uint32_t>(length);
  sqe.buffer_index = fixed ? static_cast<uint16_t>(slot.buffer) : 0;
  sqe.user_data = index;
  ++prepared_;
  figures_.blocks.fetch_add(1, std::memory_order_relaxed);
  if (fixed) figures_.fixed_blocks.fetch_add(1, std::memory_order_relaxed);
  if (under_way_ > figures_.most_under_way.load(std::memory_order_relaxed)) {
    figures_.most_under_way.store(under_way_, std::memory_order_relaxed);
  }
  if (settings_.single_submit) enter(0);
}

// Goes on after an operation: `result` is bytes, or a negative errno.
void Lane::complete(unsigned index, int64_t result) {
  Slot& slot = slots_[index];
  const bool writes = slot.transfer->writes;
  const bool direct = slot.way != Way::kBuffered;
  if (result == -EINTR || result == -EAGAIN) {
    slot.may_block = result == -EAGAIN;
    return submit(index);
  }
  if (result == -EINVAL && direct) {
    // Some file systems take O_DIRECT when a file is opened and refuse it at the first block.
    ::fcntl(slot.fd, F_SETFL, ::fcntl(slot.fd, F_GETFL) & ~O_DIRECT);
    slot.transfer->direct_refused.store(true, std::memory_order_release);
    slot.way = Way::kBuffered;
    place(slot);
    return submit(index);
  }
  if (result < 0) return end(index, static_cast<int>(-result));
  if (result == 0 && writes) return end(index, ENOSPC);  // nothing written is taken for a full file system
  slot.done += static_cast<uint64_t>(result);
  // A direct read stops off a block boundary only at the file's end, and could not go on from there.
  const bool ended = !writes && (result == 0 || (direct && result % static_cast<int64_t>(kAlignment) != 0));
  if (slot.done < slot.length && !ended) return submit(index);
  if (!writes) {
    const uint64_t before = slot.transfer->offset + slot.start - slot.offset;
    if (slot.done < before + slot.nbytes) return end(index, ENODATA);
    if (slot.way == Way::kStaged) std::memcpy(slot.transfer->memory + slot.start, slot.staging + before, slot.nbytes);
  }
  end(index, 0);
}

void Lane::end(unsigned index, int code) {
  Slot& slot = slots_[index];
  const std::shared_ptr<Transfer> transfer = std::move(slot.transfer);
  slot.transfer = nullptr;
  if (code != 0) transfer->fail(code, transfer->offset + slot.start);
  --under_way_;
  free_.push_back(index);
  transfer->settle(slot.nbytes);
}

// Gives a slot its staging buffer, registered where the kernel allows it: pinning its pages for each block costs time.
bool Lane::stage(unsigned index) {
  Slot& slot = slots_[index];
  if (slot.staging == nullptr) {
    void* found = ::mmap(nullptr, settings_.block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (found == MAP_FAILED) return false;
    // A forked child shares pages with its parent until one writes; those under a disk's DMA must stay the parent's.
    ::madvise(found, settings_.block_bytes, MADV_DONTFORK);
    slot.staging = static_cast<char*>(found);
    assign_buffer(index, slot.staging, settings_.block_bytes);
  }
  return true;
}

bool Lane::assign_buffer(unsigned index, char* memory, uint64_t nbytes) {
  if (!has_table_ || nbytes > kLongest || !ring_->set_buffer(index, memory, nbytes)) return false;
  buffers_[index] = {memory, nbytes};
  return true;
}

int Lane::find_buffer(const char* memory, uint64_t nbytes) const {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const Buffer& buffer = buffers_[i];
    if (buffer.nbytes >= nbytes && memory >= buffer.memory && memory + nbytes <= buffer.memory + buffer.nbytes) {
      return static_cast<int>(i);
    }
  }
  return -1;
}

// Makes the ring complete something when new work is added.
void Lane::watch() {
  if (watching_) return;
  uapi::Sqe& sqe = ring_->prepare();
  sqe.opcode = uapi::kPollAdd;
  sqe.fd = event_;
  sqe.operation_flags = POLLIN;
  sqe.user_data = kWatch;
  watching_ = true;
}

void Lane::enter(unsigned at_least) {
  if (prepared_ > 0) figures_.submissions.fetch_add(1, std::memory_order_relaxed);
  prepared_ = 0;
  const int code = ring_->enter(at_least);
  if (code != 0) break_down(code);
}

// The ring itself failed, which no kernel should do: every request fails, now and later.
void Lane::break_down(int code) {
  broken_ = code;
  for (unsigned index = 0; index < slots_.size(); ++index) {
    if (slots_[index].transfer != nullptr) end(index, code);
  }
}

}  // namespace dsk
