// The threads that run the tasks of a kernel call: those of torch's OpenMP runtime when lent, else a small pool.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

// Note [Whose threads]
// After a parallel torch op the threads of its OpenMP runtime keep spinning for milliseconds, waiting for the next one.
// A second set of threads would fight them for the cores, which costs a tenth of a memory-bound kernel. So where torch
// runs on GNU's libgomp, kernels run on those very threads, through the one function that compilers emit calls to; it
// is found among the libraries already loaded, nothing is linked. Elsewhere, and in a forked child (where libgomp's
// threads are gone and it would wait for them), a persistent pool of our own serves.

// The entry point of libgomp: runs body(data) on `threads` threads, the caller among them.
using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

// A `ds_parallel_for_fn`; `pool` is ignored. The calling thread takes part. A call that finds the own pool busy
// (another Python thread is in a kernel) runs its tasks on the calling thread.
void parallel_for(void* pool, int32_t threads, int64_t tasks, ds_task_fn task, void* context);

// Runs tasks on the runtime's threads from now on; NULL goes back to the own pool.
void borrow_threads(GompParallel run);

// Whether tasks run on borrowed threads.
bool is_borrowing();

// Threads the own pool has started in this process so far, without the callers.
int32_t worker_count();

}  // namespace dsk
