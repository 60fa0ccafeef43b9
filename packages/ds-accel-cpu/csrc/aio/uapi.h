// The kernel's interface of io_uring, as far as it is used here; system headers may be older than the kernel that runs.
// Source: Linux, Documentation and include/uapi/linux/io_uring.h (layouts and numbers are a stable ABI).
#pragma once

#include <cstddef>
#include <cstdint>

namespace dsk::uapi {

constexpr long kSetup = 425;  // the same numbers on every architecture this wheel is built for
constexpr long kEnter = 426;
constexpr long kRegister = 427;

struct SqOffsets {
  uint32_t head, tail, ring_mask, ring_entries, flags, dropped, array, reserved;
  uint64_t user_address;
};

struct CqOffsets {
  uint32_t head, tail, ring_mask, ring_entries, overflow, cqes, flags, reserved;
  uint64_t user_address;
};

struct Params {
  uint32_t sq_entries, cq_entries, flags, sq_thread_cpu, sq_thread_idle, features, wq_fd, reserved[3];
  SqOffsets sq;
  CqOffsets cq;
};
static_assert(sizeof(Params) == 120);

struct Sqe {
  uint8_t opcode, flags;
  uint16_t priority;
  int32_t fd;
  uint64_t offset, address;
  uint32_t length, operation_flags;
  uint64_t user_data;
  uint16_t buffer_index, personality;
  int32_t splice_fd;
  uint64_t padding[2];
};
static_assert(sizeof(Sqe) == 64 && offsetof(Sqe, user_data) == 32 && offsetof(Sqe, buffer_index) == 40);

struct Cqe {
  uint64_t user_data;
  int32_t result;
  uint32_t flags;
};
static_assert(sizeof(Cqe) == 16);

struct ProbedOp {
  uint8_t opcode, reserved;
  uint16_t flags;
  uint32_t reserved2;
};

struct Probe {
  uint8_t last_opcode, count;
  uint16_t reserved;
  uint32_t reserved2[3];
  ProbedOp ops[64];
};

struct BufferTable {
  uint32_t count, flags;
  uint64_t reserved, data, tags;
};
static_assert(sizeof(BufferTable) == 32);

struct BufferUpdate {
  uint32_t offset, reserved;
  uint64_t data, tags;
  uint32_t count, reserved2;
};
static_assert(sizeof(BufferUpdate) == 32);

enum Opcode : uint8_t { kReadFixed = 4, kWriteFixed = 5, kPollAdd = 6, kRead = 22, kWrite = 23 };

constexpr uint8_t kAlwaysAsync = 1u << 4;       // of an Sqe: hand it to a kernel thread, which may block
constexpr uint32_t kSingleIssuer = 1u << 12;    // of a ring, 6.0
constexpr uint32_t kDeferTaskrun = 1u << 13;    // of a ring, 6.1
constexpr uint32_t kFeatureNoDrop = 1u << 1;    // 5.5
constexpr uint32_t kGetEvents = 1u << 0;        // of enter
constexpr uint16_t kOpSupported = 1u << 0;      // of a probe
constexpr uint32_t kRegisterProbe = 8;          // 5.6
constexpr uint32_t kRegisterBufferTable = 15;   // 5.13
constexpr uint32_t kRegisterBufferUpdate = 16;  // 5.13
constexpr uint32_t kSparse = 1u << 0;           // of a buffer table, 5.19

constexpr uint64_t kMapSq = 0, kMapCq = 0x8000000, kMapSqes = 0x10000000;

}  // namespace dsk::uapi
