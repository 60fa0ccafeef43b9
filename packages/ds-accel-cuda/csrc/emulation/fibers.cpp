#include "emulation/fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define DSK_HAS_ASAN 1
#else
#define DSK_HAS_ASAN 0
#endif

#if !defined(DSK_EMULATION_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define DSK_EMULATION_UCONTEXT 1
#endif
#if defined(DSK_EMULATION_UCONTEXT)
#include <ucontext.h>
#endif

// Note [Switching]
// A switch saves the registers that a callee must keep, on the stack that is left, and the stack pointer. The floating
// point modes are the same for all fibers, so they stay. A stack that was never run holds zeros for those registers and
// the address of `start`, so that the switch "returns" there.
#if !defined(DSK_EMULATION_UCONTEXT)
extern "C" __attribute__((visibility("hidden"))) void dsk_emulation_switch(void** save, void* load);

#if defined(__x86_64__)
asm(R"(
.text
.p2align 4
.globl dsk_emulation_switch
.hidden dsk_emulation_switch
.type dsk_emulation_switch,@function
dsk_emulation_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dsk_emulation_switch,.-dsk_emulation_switch
)");
#else
asm(R"(
.text
.p2align 4
.globl dsk_emulation_switch
.hidden dsk_emulation_switch
.type dsk_emulation_switch,%function
dsk_emulation_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size dsk_emulation_switch,.-dsk_emulation_switch
)");
#endif
#endif

namespace dsk_emulation {
namespace {

// AddressSanitizer surrounds every local with red zones.
constexpr std::size_t kStackBytes = DSK_HAS_ASAN ? 256u << 10 : 64u << 10;

thread_local Fiber* switching_from = nullptr;
thread_local Fiber* switching_to = nullptr;

void left_the_other_stack() {
#if DSK_HAS_ASAN
  const void* bottom = nullptr;
  std::size_t size = 0;
  __sanitizer_finish_switch_fiber(switching_to->sanitizer_stack, &bottom, &size);
  if (switching_from->stack == nullptr) {  // the host thread, whose stack only the sanitizer knows
    switching_from->stack = const_cast<char*>(static_cast<const char*>(bottom));
    switching_from->stack_bytes = size;
  }
#endif
}

extern "C" void dsk_emulation_start() {
  left_the_other_stack();
  switching_to->main(switching_to->context);
  __builtin_trap();
}

}  // namespace

bool make_fiber(Fiber& fiber) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t bytes = (kStackBytes + page - 1) / page * page;
  void* memory =
      mmap(nullptr, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) return false;
  mprotect(memory, page, PROT_NONE);
  fiber = Fiber{};
  fiber.stack = static_cast<char*>(memory) + page;
  fiber.stack_bytes = bytes;
#if defined(DSK_EMULATION_UCONTEXT)
  fiber.native = new ucontext_t;
#endif
  return true;
}

void free_fiber(Fiber& fiber) {
  const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  munmap(fiber.stack - page, fiber.stack_bytes + page);
#if defined(DSK_EMULATION_UCONTEXT)
  delete static_cast<ucontext_t*>(fiber.native);
#endif
  fiber = Fiber{};
}

void prepare_fiber(Fiber& fiber, FiberMain main, void* context) {
#if DSK_HAS_ASAN
  __asan_unpoison_memory_region(fiber.stack, fiber.stack_bytes);  // frames that were left for good
#endif
  fiber.sanitizer_stack = nullptr;
  fiber.main = main;
  fiber.context = context;
  char* top = fiber.stack + fiber.stack_bytes;
#if defined(DSK_EMULATION_UCONTEXT)
  (void)top;
  ucontext_t* native = static_cast<ucontext_t*>(fiber.native);
  getcontext(native);
  native->uc_stack.ss_sp = fiber.stack;
  native->uc_stack.ss_size = fiber.stack_bytes;
  native->uc_link = nullptr;
  makecontext(native, dsk_emulation_start, 0);
#elif defined(__x86_64__)
  void** words = reinterpret_cast<void**>(top) - 8;  // six registers, where to return, and an end for backtraces
  std::memset(words, 0, 8 * sizeof(void*));
  words[6] = reinterpret_cast<void*>(dsk_emulation_start);
  fiber.stack_pointer = words;
#else
  char* frame = top - 160;
  std::memset(frame, 0, 160);
  *reinterpret_cast<void**>(frame + 88) = reinterpret_cast<void*>(dsk_emulation_start);  // x30
  fiber.stack_pointer = frame;
#endif
}

void switch_fiber(Fiber& from, Fiber& to) {
  switching_from = &from;
  switching_to = &to;
#if DSK_HAS_ASAN
  __sanitizer_start_switch_fiber(&from.sanitizer_stack, to.stack, to.stack_bytes);
#endif
#if defined(DSK_EMULATION_UCONTEXT)
  ucontext_t host;
  if (from.native == nullptr) from.native = &host;  // the host thread: lives as long as this call
  swapcontext(static_cast<ucontext_t*>(from.native), static_cast<ucontext_t*>(to.native));
  if (from.native == &host) from.native = nullptr;
#else
  dsk_emulation_switch(&from.stack_pointer, to.stack_pointer);
#endif
  left_the_other_stack();
}

}  // namespace dsk_emulation
