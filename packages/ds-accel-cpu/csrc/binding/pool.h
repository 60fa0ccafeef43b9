// A small pool of persistent threads that runs the tasks of one kernel call at a time.
#pragma once

#include <cstdint>

#include "ds_kernel.h"

namespace dsk {

// A `ds_parallel_for_fn`; `pool` is ignored, there is one pool a process. The calling thread takes part. A call that
// finds the pool busy (another Python thread is in a kernel) runs its tasks on the calling thread.
void parallel_for(void* pool, int32_t threads, int64_t tasks, ds_task_fn task, void* context);

// Threads the pool has started in this process so far, without the callers.
int32_t worker_count();

}  // namespace dsk
