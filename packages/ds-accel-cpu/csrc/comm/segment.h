// The memory that the ranks of one host share for one group, and who of them is alive.
//
// Note [The segment]
// One anonymous file (memfd) holds everything, and every rank maps it. It has no name in any file system, so nothing is
// left when all ranks are gone, however they went, and nobody can open it who was not handed its descriptor. In it lie
//   control                      shape of the segment; who broke the group
//   one RankState for each rank  rounds published, doorbell, last words
//   done [ranks][ranks]          rounds of one rank that another has consumed
//   calls [ranks][slots]         what each round belongs to
//   channels [ranks][ranks]      positions in the rings
//   rings [ranks][ranks]         bytes of messages from one rank to another
//   slots [ranks][slots]         bytes of collectives
// Pages are only taken when they are touched: rings of pairs that never talk cost nothing.
//
// Note [Who is alive]
// Each rank holds a POSIX lock on the byte of the file that has its number. The system takes the lock away when the
// process is gone, for whatever reason, and a forked child does not inherit it; asking is one fcntl.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace dsc {

constexpr int64_t kLine = 64;
constexpr int64_t kPage = 4096;
constexpr int64_t kLastWords = 1024;

// A number that one process changes and others wait for, on its own cache line.
struct alignas(kLine) Word {
  std::atomic<uint32_t> value;
  std::atomic<uint32_t> sleepers;
};

// What a rank called; equal on all ranks, or the group is broken.
struct alignas(kLine) CallHeader {
  int32_t kind;
  int32_t dtype;
  int32_t op;
  int32_t root;
  uint64_t number;
  int64_t bytes;
};

struct alignas(kLine) RankState {
  Word ready;                      // rounds published
  Word bell;                       // rung when something of a channel of this rank changed
  std::atomic<uint64_t> process;   // a random number of the process; 0 until it has attached
  std::atomic<uint32_t> has_left;  // it closed the group in an orderly way
  char last_words[kLastWords];     // why it broke the group
};

// Positions in a ring, in bytes since the beginning; on lines of their own because two processes write them.
struct Channel {
  alignas(kLine) std::atomic<uint64_t> head;
  alignas(kLine) std::atomic<uint64_t> tail;
};

struct alignas(kLine) Control {
  std::atomic<uint32_t> broken_by;  // 1 + rank of the first that failed; 0 while all is well
};

struct Shape {
  int32_t ranks;
  int32_t slots;
  int64_t slot_bytes;  // a multiple of the page
  int64_t ring_bytes;  // a power of two, a multiple of the page
  int64_t total_bytes() const;
};

class Segment {
 public:
  // Maps the file `fd` and owns it from now on. Throws std::runtime_error.
  Segment(int fd, const Shape& shape, int32_t rank);
  ~Segment();
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;

  const Shape& shape() const { return shape_; }
  Control& control() const { return *reinterpret_cast<Control*>(base_); }
  RankState& state(int32_t rank) const;
  Word& done(int32_t producer, int32_t consumer) const;
  CallHeader& call(int32_t rank, uint32_t round) const;
  Channel& channel(int32_t from, int32_t to) const;
  char* ring(int32_t from, int32_t to) const;
  char* slot(int32_t rank, uint32_t round) const;

  // Takes this rank's lock and says that it is here.
  void attach();
  // True when another process is known to be gone. Asked for a rank that has attached.
  bool is_gone(int32_t rank) const;
  // Closes the descriptor only; for a forked child, where the memory is not mapped.
  void forget();

 private:
  Shape shape_;
  int32_t rank_;
  int fd_;
  char* base_ = nullptr;
  int64_t states_, done_, calls_, channels_, rings_, slots_;
};

// Waits until the value is no longer `seen`, at most `nap_ms`; 0, EAGAIN, EINTR or ETIMEDOUT.
int futex_wait(std::atomic<uint32_t>& value, uint32_t seen, int nap_ms);
// Sets the value and wakes who sleeps on it.
void set_word(Word& word, uint32_t value);
// Adds one and wakes who sleeps on it.
void ring_bell(Word& word);
// A number that no other process has.
uint64_t process_token();

}  // namespace dsc
