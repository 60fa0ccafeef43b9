#include "ring.h"

#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <system_error>

namespace dsk {
namespace {

int setup(unsigned entries, uapi::Params& params) {
  return static_cast<int>(::syscall(uapi::kSetup, entries, &params));
}

int open_ring(unsigned entries, uapi::Params& params) {
  // Completions are then handled when their thread asks for them, and not in the middle of something else.
  params = {};
  params.flags = uapi::kSingleIssuer | uapi::kDeferTaskrun;
  int fd = setup(entries, params);
  if (fd < 0 && errno == EINVAL) {
    params = {};
    fd = setup(entries, params);
  }
  return fd;
}

uint64_t supported_ops(int fd) {
  uapi::Probe probe = {};
  if (::syscall(uapi::kRegister, fd, uapi::kRegisterProbe, &probe, 64) < 0) return 0;
  uint64_t found = 0;
  for (unsigned i = 0; i < probe.count && i < 64; ++i) {
    if (probe.ops[i].flags & uapi::kOpSupported) found |= uint64_t{1} << i;
  }
  return found;
}

template <typename T>
T* at(void* memory, uint32_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(memory) + offset);
}

void* map_ring(int fd, uint64_t bytes, uint64_t offset) {
  void* found =
      ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, static_cast<off_t>(offset));
  if (found == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap of an io_uring");
  return found;
}

std::string refusal_text(int code) {
  std::string text = "the kernel refuses io_uring_setup (";
  text += code == ENOSYS ? "ENOSYS" : code == EPERM ? "EPERM" : code == ENOMEM ? "ENOMEM" : std::strerror(code);
  text += ")";
  int disabled = 0;
  std::ifstream("/proc/sys/kernel/io_uring_disabled") >> disabled;
  if (disabled != 0) return text + ": kernel.io_uring_disabled is " + std::to_string(disabled);
  if (code == ENOSYS) return text + ": it is too old, or a seccomp filter hides the call";
  if (code == EPERM) return text + ": a seccomp filter forbids the call, as container runtimes do by default";
  if (code == ENOMEM) return text + ": too little memory may be locked; see ulimit -l";
  return text;
}

}  // namespace

std::string uring_refusal() {
  uapi::Params params;
  const int fd = open_ring(2, params);
  if (fd < 0) return refusal_text(errno);
  const uint64_t ops = supported_ops(fd);
  ::close(fd);
  for (const uapi::Opcode opcode : {uapi::kRead, uapi::kWrite, uapi::kPollAdd}) {
    if (!(ops >> opcode & 1))
      return "the kernel's io_uring has no plain reads and writes; Linux 5.6 is the first that has";
  }
  if (!(params.features & uapi::kFeatureNoDrop))
    return "the kernel's io_uring may drop completions; Linux 5.6 does not";
  return "";
}

Ring::Ring(unsigned entries) {
  uapi::Params params;
  fd_ = open_ring(entries, params);
  if (fd_ < 0) throw std::system_error(errno, std::generic_category(), "io_uring_setup");
  try {
    map(params);
  } catch (...) {
    close_all();
    throw;
  }
  supported_ = supported_ops(fd_);
}

Ring::~Ring() { close_all(); }

void Ring::map(const uapi::Params& params) {
  sq_bytes_ = params.sq.array + params.sq_entries * sizeof(uint32_t);
  cq_bytes_ = params.cq.cqes + params.cq_entries * sizeof(uapi::Cqe);
  sqe_bytes_ = params.sq_entries * sizeof(uapi::Sqe);
  sq_memory_ = map_ring(fd_, sq_bytes_, uapi::kMapSq);
  cq_memory_ = map_ring(fd_, cq_bytes_, uapi::kMapCq);
  sqes_ = static_cast<uapi::Sqe*>(map_ring(fd_, sqe_bytes_, uapi::kMapSqes));
  sq_head_ = at<uint32_t>(sq_memory_, params.sq.head);
  sq_tail_ = at<uint32_t>(sq_memory_, params.sq.tail);
  sq_array_ = at<uint32_t>(sq_memory_, params.sq.array);
  sq_mask_ = *at<uint32_t>(sq_memory_, params.sq.ring_mask);
  cq_head_ = at<uint32_t>(cq_memory_, params.cq.head);
  cq_tail_ = at<uint32_t>(cq_memory_, params.cq.tail);
  cq_mask_ = *at<uint32_t>(cq_memory_, params.cq.ring_mask);
  cqes_ = at<uapi::Cqe>(cq_memory_, params.cq.cqes);
  tail_ = *sq_tail_;
}

void Ring::close_all() {
  if (sqes_ != nullptr) ::munmap(sqes_, sqe_bytes_);
  if (cq_memory_ != nullptr) ::munmap(cq_memory_, cq_bytes_);
  if (sq_memory_ != nullptr) ::munmap(sq_memory_, sq_bytes_);
  if (fd_ >= 0) ::close(fd_);
}

uapi::Sqe& Ring::prepare() {
  const uint32_t index = tail_ & sq_mask_;
  sq_array_[index] = index;
  ++tail_;
  sqes_[index] = {};
  return sqes_[index];
}

int Ring::enter(unsigned at_least) {
  __atomic_store_n(sq_tail_, tail_, __ATOMIC_RELEASE);
  for (;;) {
    const unsigned prepared = tail_ - __atomic_load_n(sq_head_, __ATOMIC_ACQUIRE);
    const unsigned flags = at_least > 0 ? uapi::kGetEvents : 0;
    const long done = ::syscall(uapi::kEnter, fd_, prepared, at_least, flags, nullptr, 0);
    if (done >= 0) {
      // The kernel took fewer than there were, which it does when one of them is faulty or memory is short.
      if (static_cast<unsigned long>(done) >= prepared) return 0;
      continue;
    }
    if (errno == EINTR) continue;
    if (errno != EAGAIN && errno != EBUSY) return errno;
    if (at_least > 0 && *cq_head_ != __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE)) return 0;  // reap, then come again
    ::sched_yield();
  }
}

bool Ring::reap(uapi::Cqe& out) {
  const uint32_t head = *cq_head_;
  if (head == __atomic_load_n(cq_tail_, __ATOMIC_ACQUIRE)) return false;
  out = cqes_[head & cq_mask_];
  __atomic_store_n(cq_head_, head + 1, __ATOMIC_RELEASE);
  return true;
}

bool Ring::make_buffer_table(unsigned count) {
  uapi::BufferTable table = {};
  table.count = count;
  table.flags = uapi::kSparse;
  return ::syscall(uapi::kRegister, fd_, uapi::kRegisterBufferTable, &table, sizeof(table)) >= 0;
}

bool Ring::set_buffer(unsigned index, void* memory, uint64_t nbytes) {
  iovec vector = {nbytes > 0 ? memory : nullptr, nbytes};
  uint64_t tag = 0;
  uapi::BufferUpdate update = {};
  update.offset = index;
  update.data = reinterpret_cast<uint64_t>(&vector);
  update.tags = reinterpret_cast<uint64_t>(&tag);
  update.count = 1;
  return ::syscall(uapi::kRegister, fd_, uapi::kRegisterBufferUpdate, &update, sizeof(update)) == 1;
}

}  // namespace dsk
