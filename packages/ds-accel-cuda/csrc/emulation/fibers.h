// Fibers: stacks that one host thread switches between. They are what the threads of an emulated block run on.
#pragma once

#include <cstddef>

namespace dsk_emulation {

using FiberMain = void (*)(void* context);

// One stack and where it was left. Stacks are kept for the next block.
struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // lowest address; below it lies a page that nobody may touch
  std::size_t stack_bytes = 0;
  void* sanitizer_stack = nullptr;  // AddressSanitizer's own record of a fiber that was left
  FiberMain main = nullptr;         // what it runs from its beginning, with `context`
  void* context = nullptr;
  void* native = nullptr;  // where the machine has no assembly of ours: its ucontext
};

// Maps a stack. Returns false if the system has no memory for it.
bool make_fiber(Fiber& fiber);
void free_fiber(Fiber& fiber);

// The next switch to `fiber` calls main(context), on an empty stack; main never returns.
void prepare_fiber(Fiber& fiber, FiberMain main, void* context);

// Leaves `from`, which is running, and goes on where `to` was left. A Fiber without a stack is the host thread.
void switch_fiber(Fiber& from, Fiber& to);

}  // namespace dsk_emulation
