#include "segment.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <stdexcept>

namespace dsc {
namespace {

int64_t round_up(int64_t bytes, int64_t unit) { return (bytes + unit - 1) / unit * unit; }

struct flock byte_of(int32_t rank) {
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  lock.l_start = rank;
  lock.l_len = 1;
  return lock;
}

}  // namespace

int64_t Shape::total_bytes() const {
  const int64_t n = ranks;
  const int64_t head = static_cast<int64_t>(sizeof(Control)) + n * static_cast<int64_t>(sizeof(RankState)) +
                       n * n * static_cast<int64_t>(sizeof(Word) + sizeof(Channel)) +
                       n * slots * static_cast<int64_t>(sizeof(CallHeader));
  return round_up(head, kPage) + n * n * ring_bytes + n * slots * slot_bytes;
}

Segment::Segment(int fd, const Shape& shape, int32_t rank) : shape_(shape), rank_(rank), fd_(fd) {
  const int64_t n = shape.ranks;
  states_ = sizeof(Control);
  done_ = states_ + n * static_cast<int64_t>(sizeof(RankState));
  calls_ = done_ + n * n * static_cast<int64_t>(sizeof(Word));
  channels_ = calls_ + n * shape.slots * static_cast<int64_t>(sizeof(CallHeader));
  rings_ = round_up(channels_ + n * n * static_cast<int64_t>(sizeof(Channel)), kPage);
  slots_ = rings_ + n * n * shape.ring_bytes;
  const int64_t bytes = shape.total_bytes();
  void* const memory = ::mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) {
    throw std::runtime_error("cannot map a shared segment of " + std::to_string(bytes) +
                             " bytes: " + std::strerror(errno));
  }
  base_ = static_cast<char*>(memory);
  ::madvise(memory, static_cast<size_t>(bytes), MADV_DONTFORK);
}

Segment::~Segment() {
  if (base_ != nullptr) ::munmap(base_, static_cast<size_t>(shape_.total_bytes()));
  if (fd_ >= 0) ::close(fd_);
}

RankState& Segment::state(int32_t rank) const { return reinterpret_cast<RankState*>(base_ + states_)[rank]; }

Word& Segment::done(int32_t producer, int32_t consumer) const {
  return reinterpret_cast<Word*>(base_ + done_)[producer * shape_.ranks + consumer];
}

CallHeader& Segment::call(int32_t rank, uint32_t round) const {
  const uint32_t slots = static_cast<uint32_t>(shape_.slots);
  return reinterpret_cast<CallHeader*>(base_ + calls_)[static_cast<uint32_t>(rank) * slots + round % slots];
}

Channel& Segment::channel(int32_t from, int32_t to) const {
  return reinterpret_cast<Channel*>(base_ + channels_)[from * shape_.ranks + to];
}

char* Segment::ring(int32_t from, int32_t to) const {
  return base_ + rings_ + (static_cast<int64_t>(from) * shape_.ranks + to) * shape_.ring_bytes;
}

char* Segment::slot(int32_t rank, uint32_t round) const {
  const uint32_t slots = static_cast<uint32_t>(shape_.slots);
  return base_ + slots_ + static_cast<int64_t>(static_cast<uint32_t>(rank) * slots + round % slots) * shape_.slot_bytes;
}

void Segment::attach() {
  struct flock lock = byte_of(rank_);
  if (::fcntl(fd_, F_SETLK, &lock) != 0) {
    throw std::runtime_error(std::string("cannot lock a byte of the shared segment: ") + std::strerror(errno));
  }
  state(rank_).process.store(process_token(), std::memory_order_seq_cst);
}

bool Segment::is_gone(int32_t rank) const {
  const uint64_t process = state(rank).process.load(std::memory_order_acquire);
  if (process == 0 || process == process_token()) return false;
  struct flock lock = byte_of(rank);
  return ::fcntl(fd_, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK;
}

void Segment::forget() {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

int futex_wait(std::atomic<uint32_t>& value, uint32_t seen, int nap_ms) {
  static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free, "a futex word");
  timespec nap = {nap_ms / 1000, (nap_ms % 1000) * 1000000L};
  const long status = ::syscall(SYS_futex, &value, FUTEX_WAIT, seen, &nap, nullptr, 0);
  return status == 0 ? 0 : errno;
}

namespace {

void wake(Word& word) {
  if (word.sleepers.load(std::memory_order_seq_cst) > 0) {
    ::syscall(SYS_futex, &word.value, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
  }
}

}  // namespace

void set_word(Word& word, uint32_t value) {
  word.value.store(value, std::memory_order_seq_cst);
  wake(word);
}

void ring_bell(Word& word) {
  word.value.fetch_add(1, std::memory_order_seq_cst);
  wake(word);
}

uint64_t process_token() {
  static std::atomic<uint64_t> token{0};
  uint64_t known = token.load();
  while (known == 0) {
    uint64_t fresh = 0;
    if (::getrandom(&fresh, sizeof(fresh), 0) != sizeof(fresh)) fresh = static_cast<uint64_t>(::getpid()) << 32 | 1;
    if (fresh != 0 && token.compare_exchange_strong(known, fresh)) known = fresh;
  }
  return known;
}

}  // namespace dsc
