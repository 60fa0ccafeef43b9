// One io_uring, by raw system calls. Used by the one thread that made it.
#pragma once

#include <cstdint>
#include <string>

#include "uapi.h"

namespace dsk {

// Why this process cannot use io_uring; empty when it can. Asks the kernel, since a security policy may forbid it.
std::string uring_refusal();

class Ring {
 public:
  // Throws std::system_error. `entries` is how many operations may be prepared at a time.
  explicit Ring(unsigned entries);
  ~Ring();
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;

  // An entry to fill in, all zero. There is room for `entries` between two calls of `enter`.
  uapi::Sqe& prepare();

  // Submits what was prepared and waits for `at_least` completions; 0, or an errno that no retry cures.
  int enter(unsigned at_least);

  // The next completion, if there is one.
  bool reap(uapi::Cqe& out);

  // Which operations this kernel knows.
  bool supports(uapi::Opcode opcode) const { return opcode < 64 && (supported_ >> opcode & 1); }

  // Room for `count` registered buffers; false where the kernel has no such table.
  bool make_buffer_table(unsigned count);

  // Pins memory as entry `index`, or empties the entry when `nbytes` is 0; false when the kernel refuses.
  bool set_buffer(unsigned index, void* memory, uint64_t nbytes);

 private:
  void map(const uapi::Params& params);
  void close_all();

  int fd_ = -1;
  uint64_t supported_ = 0;
  void* sq_memory_ = nullptr;
  void* cq_memory_ = nullptr;
  uint64_t sq_bytes_ = 0, cq_bytes_ = 0, sqe_bytes_ = 0;
  uapi::Sqe* sqes_ = nullptr;
  uapi::Cqe* cqes_ = nullptr;
  uint32_t *sq_head_ = nullptr, *sq_tail_ = nullptr, *sq_array_ = nullptr;
  uint32_t *cq_head_ = nullptr, *cq_tail_ = nullptr;
  uint32_t sq_mask_ = 0, cq_mask_ = 0, tail_ = 0;
};

}  // namespace dsk
