// The one symbol this library exports.
#include "activation/rows.h"
#include "attention/rows.h"
#include "ds_kernel.h"
#include "loss/rows.h"
#include "matmul/rows.h"
#include "moe/rows.h"
#include "norm/rows.h"
#include "optim/rows.h"
#include "quantize/rows.h"
#include "ragged/rows.h"
#include "tokens/rows.h"

#ifndef DSK_TARGET
#error "define DSK_TARGET as what the code was built for"
#endif

namespace {

const ds_kernel_entry kEntries[] = {
    // One macro for each family of ops, from its rows.h.
    // clang-format off
    DSK_ACTIVATION_ROWS
    DSK_ATTENTION_ROWS
    DSK_LOSS_ROWS
    DSK_MATMUL_ROWS
    DSK_MOE_ROWS
    DSK_NORM_ROWS
    DSK_OPTIM_ROWS
    DSK_QUANTIZE_ROWS
    DSK_RAGGED_ROWS
    DSK_TOKENS_ROWS
    // clang-format on
};

const ds_kernel_library kDescriptor = {
    DS_KERNEL_MAGIC,
    DS_KERNEL_ABI_MAJOR,
    DS_KERNEL_ABI_MINOR,
    sizeof(ds_kernel_library),
    sizeof(ds_kernel_entry),
    sizeof(kEntries) / sizeof(kEntries[0]),
    0,
    DSK_TARGET,
    DSK_BUILD,
    kEntries,
};

}  // namespace

extern "C" DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &kDescriptor; }
