/* The C ABI between ds-core and a library of kernels.
 *
 * A kernel library is a plain shared library. It includes no torch header, links no libtorch, exports exactly one
 * symbol, `ds_kernel_descriptor`, and hides the rest. Every kernel has the same C signature: a pointer to the argument
 * struct of its op and a pointer to the execution context. Kernels own no memory, keep no state between calls and
 * throw nothing; what they need besides the arguments comes as a caller-allocated workspace.
 *
 * Growth: a newer minor version only appends fields to structs and constants to enums. Every struct begins with its own
 * size in bytes, so a reader takes the fields it knows. A library of another major version is refused.
 */
#ifndef DS_KERNEL_H
#define DS_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define DS_KERNEL_MAGIC 0x314B5344u /* "DSK1" in memory on a little-endian machine */
#define DS_KERNEL_ABI_MAJOR 1
#define DS_KERNEL_ABI_MINOR 1

#if defined(_WIN32)
#define DS_KERNEL_EXPORT __declspec(dllexport)
#else
#define DS_KERNEL_EXPORT __attribute__((visibility("default")))
#endif

/* Element types. */
enum ds_dtype {
  DS_NONE = 0, /* an optional tensor that is absent */
  DS_F32 = 1,
  DS_BF16 = 2,
  DS_F16 = 3,
  DS_F64 = 4,
  DS_I8 = 5,
  DS_U8 = 6,
  DS_I32 = 7,
  DS_I64 = 8,
  DS_BOOL = 9 /* a byte, 0 or 1 */
};

/* What a kernel returns. Anything but DS_OK means that no output is defined. */
enum ds_status {
  DS_OK = 0,
  DS_BAD_ARGUMENT = 1,        /* a size, pointer or struct_size the op does not allow */
  DS_UNSUPPORTED_DTYPE = 2,   /* a dtype code, or a combination, this library does not serve */
  DS_WORKSPACE_TOO_SMALL = 3, /* less workspace than `workspace_bytes` of this op asks for */
  DS_DEVICE_ERROR = 4,        /* the device's own runtime failed (launch, driver, memory) */
  DS_INDEX_OUT_OF_RANGE = 5   /* a value of an index tensor names no row; nothing was written */
};

/* One unit of host work: called once for each task number in [0, tasks), from any thread, in any order. */
typedef void (*ds_task_fn)(void* context, int64_t task);

/* Runs `task` for every task number on at most `threads` threads, and returns when all are done. */
typedef void (*ds_parallel_for_fn)(void* pool, int32_t threads, int64_t tasks, ds_task_fn task, void* context);

/* Where and with what a kernel runs. Results must not depend on `threads`. */
typedef struct ds_exec {
  uint32_t struct_size;
  int32_t threads;                 /* host kernels: most threads to use, at least 1. Device kernels ignore it */
  void* stream;                    /* device kernels: the raw stream or queue handle. Host kernels ignore it */
  void* workspace;                 /* caller-allocated scratch, aligned to 64 bytes; NULL if the op asks for none */
  uint64_t workspace_bytes;        /* its size */
  ds_parallel_for_fn parallel_for; /* host kernels: NULL runs on the calling thread */
  void* pool;                      /* first argument of `parallel_for` */
  char* message;                   /* since ABI 1.1, NULL or absent: room for why a call is refused, one line */
  uint64_t message_bytes;          /* of that room, with the closing 0 */
} ds_exec;

/* Size of ds_exec in ABI 1.0: what every caller has. */
#define DS_EXEC_SIZE_1_0 offsetof(ds_exec, message)

typedef int32_t (*ds_kernel_fn)(const void* arguments, const ds_exec* exec);
typedef uint64_t (*ds_workspace_fn)(const void* arguments);

/* One row of the op table. */
typedef struct ds_kernel_entry {
  const char* name; /* op name in the op table of ds-core, for example "adam_" */
  uint32_t version; /* version of the op's argument struct */
  uint32_t flags;   /* DS_KERNEL_FLAG_* */
  ds_kernel_fn run;
  ds_workspace_fn workspace_bytes; /* NULL: needs no workspace */
} ds_kernel_entry;

#define DS_KERNEL_FLAG_DETERMINISTIC 1u /* the same bits for any thread count and any run */

typedef struct ds_kernel_library {
  uint32_t magic;     /* DS_KERNEL_MAGIC */
  uint16_t abi_major; /* DS_KERNEL_ABI_MAJOR the library was built with */
  uint16_t abi_minor;
  uint32_t struct_size; /* sizeof(ds_kernel_library) */
  uint32_t entry_size;  /* sizeof(ds_kernel_entry) */
  uint32_t entry_count;
  uint32_t reserved;
  const char* target; /* what the code needs, for example "x86_64_v3" or "sm_90" */
  const char* build;  /* compiler and version, for reports */
  const ds_kernel_entry* entries;
} ds_kernel_library;

/* The one exported symbol: `const ds_kernel_library* ds_kernel_descriptor(void)`. */
typedef const ds_kernel_library* (*ds_kernel_descriptor_fn)(void);

/* Argument structs, one per op, in a header for each family. Sizes and strides are in elements, tensors are dense
 * unless said so. Each begins with `uint32_t struct_size`; fields are of the types uint32_t, int32_t, uint64_t,
 * int64_t, float, double and pointers only, because ds_core.ops.arguments reads these very declarations. */
#include "ds_kernel/activation.h"
#include "ds_kernel/attention.h"
#include "ds_kernel/loss.h"
#include "ds_kernel/matmul.h"
#include "ds_kernel/moe.h"
#include "ds_kernel/norm.h"
#include "ds_kernel/optim.h"
#include "ds_kernel/quantize.h"
#include "ds_kernel/ragged.h"
#include "ds_kernel/reduce.h"
#include "ds_kernel/tokens.h"

#ifdef __cplusplus
}
#endif

#endif /* DS_KERNEL_H */
