// Calls kernels on behalf of another process: `runner LIBRARY` reads calls from standard input and answers on standard
// output, `runner` alone says what the probe finds. It runs where Python does not, under an emulator of another
// processor; tools/emulation/ is the other side of the pipe and describes the messages.
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(__aarch64__)
#include <sys/prctl.h>
#endif

#include "ds_kernel.h"
#include "probe.h"

namespace {

constexpr uint32_t kMagic = 0x524b5344;  // "DSKR"
constexpr int32_t kNoSuchKernel = -1;
constexpr size_t kGuard = 128;  // bytes before and after a buffer that a kernel must leave alone
constexpr size_t kAlignment = 64;
constexpr uint64_t kMostBytes = 1ull << 40;
constexpr unsigned char kGuardByte = 0xc3;
constexpr unsigned char kScratchByte = 0xff;  // as float32 or float64 not a number: shows reads of what nobody wrote

[[noreturn]] void fail(const char* why) {
  std::fprintf(stderr, "runner: %s\n", why);
  std::exit(1);
}

// False at the end of the input, if that is where a message would begin.
bool read_all(void* to, size_t bytes) {
  char* next = static_cast<char*>(to);
  for (size_t left = bytes; left > 0;) {
    const ssize_t got = read(STDIN_FILENO, next, left);
    if (got == 0 && left == bytes) return false;
    if (got <= 0) fail("the caller went away in the middle of a message");
    next += got;
    left -= static_cast<size_t>(got);
  }
  return true;
}

void write_all(const void* from, size_t bytes) {
  const char* next = static_cast<const char*>(from);
  while (bytes > 0) {
    const ssize_t put = write(STDOUT_FILENO, next, bytes);
    if (put <= 0) fail("the caller does not listen");
    next += put;
    bytes -= static_cast<size_t>(put);
  }
}

struct Message {
  uint32_t magic;
  uint32_t name_bytes;
  int32_t threads;
  uint32_t buffers;
  uint32_t pointers;
  uint32_t reserved;
};

struct BufferHead {
  uint64_t bytes;
  uint64_t address;  // where the caller has it: it gets the same place within a cache line here
};

// At byte `at` of buffer `in` stands the address of byte `offset` of buffer `to`.
struct Pointer {
  uint32_t in;
  uint32_t to;
  uint64_t at;
  uint64_t offset;
};

class Buffer {
 public:
  Buffer(size_t bytes, size_t address, unsigned char fill)
      : bytes_(bytes), whole_(bytes + 2 * kGuard + 2 * kAlignment, kGuardByte) {
    const size_t start = reinterpret_cast<size_t>(whole_.data()) + kGuard;
    const size_t aligned = (start + kAlignment - 1) / kAlignment * kAlignment;
    data_ = reinterpret_cast<unsigned char*>(aligned + address % kAlignment);
    std::memset(data_, fill, bytes_);
  }
  Buffer(Buffer&&) = default;
  Buffer(const Buffer&) = delete;
  unsigned char* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  bool is_sound() const {
    const auto untouched = [](unsigned char byte) { return byte == kGuardByte; };
    return std::all_of(whole_.data(), static_cast<const unsigned char*>(data_), untouched) &&
           std::all_of(static_cast<const unsigned char*>(data_ + bytes_), whole_.data() + whole_.size(), untouched);
  }

 private:
  size_t bytes_;
  std::vector<unsigned char> whole_;
  unsigned char* data_ = nullptr;
};

// Last task first: a result must not depend on the order.
void backwards(void*, int32_t, int64_t tasks, ds_task_fn task, void* context) {
  for (int64_t i = tasks - 1; i >= 0; --i) task(context, i);
}

const ds_kernel_entry* find(const ds_kernel_library* library, const std::string& name) {
  for (uint32_t i = 0; i < library->entry_count; ++i) {
    const char* row = reinterpret_cast<const char*>(library->entries) + i * library->entry_size;
    const ds_kernel_entry* entry = reinterpret_cast<const ds_kernel_entry*>(row);
    if (name == entry->name) return entry;
  }
  return nullptr;
}

int32_t run(const ds_kernel_entry* entry, const void* arguments, int32_t threads, bool* is_sound) {
  const uint64_t bytes = entry->workspace_bytes != nullptr ? entry->workspace_bytes(arguments) : 0;
  Buffer workspace(bytes, 0, kScratchByte);
  ds_exec exec = {};
  exec.struct_size = sizeof(exec);
  exec.threads = threads;
  exec.workspace = bytes > 0 ? workspace.data() : nullptr;
  exec.workspace_bytes = bytes;
  exec.parallel_for = backwards;
  const int32_t status = entry->run(arguments, &exec);
  *is_sound = workspace.is_sound();
  return status;
}

std::vector<Buffer> read_buffers(uint32_t count) {
  std::vector<Buffer> buffers;
  for (uint32_t i = 0; i < count; ++i) {
    BufferHead head;
    read_all(&head, sizeof(head));
    if (head.bytes > kMostBytes) fail("a buffer is too large");
    buffers.emplace_back(head.bytes, head.address, 0);
    read_all(buffers.back().data(), head.bytes);
  }
  return buffers;
}

// Reads one call, makes it, and answers: status, number of the first buffer that was overrun (their count for the
// workspace, -1 for none), and what all buffers but the argument struct hold now. False at the end of the input.
bool serve(const ds_kernel_library* library) {
  Message message;
  if (!read_all(&message, sizeof(message))) return false;
  if (message.magic != kMagic || message.buffers < 1) fail("that is no call");
  std::string name(message.name_bytes, '\0');
  read_all(&name[0], name.size());
  const std::vector<Buffer> buffers = read_buffers(message.buffers);
  for (uint32_t i = 0; i < message.pointers; ++i) {
    Pointer pointer;
    read_all(&pointer, sizeof(pointer));
    const unsigned char* target = buffers.at(pointer.to).data() + pointer.offset;
    std::memcpy(buffers.at(pointer.in).data() + pointer.at, &target, sizeof(target));
  }
  const ds_kernel_entry* entry = find(library, name);
  bool is_workspace_sound = true;
  const int32_t status =
      entry == nullptr ? kNoSuchKernel : run(entry, buffers[0].data(), message.threads, &is_workspace_sound);
  int32_t overrun = is_workspace_sound ? -1 : static_cast<int32_t>(message.buffers);
  for (size_t i = buffers.size(); i-- > 0;) {
    if (!buffers[i].is_sound()) overrun = static_cast<int32_t>(i);
  }
  const int32_t answer[] = {status, overrun};
  write_all(answer, sizeof(answer));
  for (size_t i = 1; i < buffers.size(); ++i) write_all(buffers[i].data(), buffers[i].bytes());
  return true;
}

int vector_bits() {
#if defined(__aarch64__) && defined(PR_SVE_GET_VL)
  const int length = prctl(PR_SVE_GET_VL);
  return length < 0 ? 0 : (length & PR_SVE_VL_LEN_MASK) * 8;
#else
  return 0;
#endif
}

void say_what_the_probe_finds() {
  for (const dsk::Level& level : dsk::levels()) {
    std::printf("level %s: %s\n", level.name, level.usable ? "usable" : level.reason.c_str());
  }
  std::printf("features:");
  for (const std::string& feature : dsk::features()) std::printf(" %s", feature.c_str());
  std::printf("\nscalable vector bits: %d\n", vector_bits());
}

}  // namespace

int main(int count, char** words) {
  if (count < 2) {
    say_what_the_probe_finds();
    return 0;
  }
  void* opened = dlopen(words[1], RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) fail(dlerror());
  const auto describe = reinterpret_cast<ds_kernel_descriptor_fn>(dlsym(opened, "ds_kernel_descriptor"));
  if (describe == nullptr) fail("the library exports no ds_kernel_descriptor");
  const ds_kernel_library* library = describe();
  if (library->magic != DS_KERNEL_MAGIC || library->abi_major != DS_KERNEL_ABI_MAJOR)
    fail("the library is of another ABI");
  while (serve(library)) {
  }
  return 0;
}
