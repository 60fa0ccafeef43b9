// The one symbol this library exports.
#include "kernels.h"

#ifndef DSK_TARGET
#error "define DSK_TARGET as the name of the instruction-set level"
#endif

namespace {

const ds_kernel_entry kEntries[] = {
    {"adam_", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::adam, nullptr},
    {"sum_of_squares", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::sum_of_squares, dsk::sum_of_squares_workspace},
    {"rms_norm_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::rms_norm_forward, dsk::rms_norm_forward_workspace},
    {"rms_norm_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::rms_norm_backward, dsk::rms_norm_backward_workspace},
    {"layer_norm_forward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::layer_norm_forward, dsk::layer_norm_forward_workspace},
    {"layer_norm_backward", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::layer_norm_backward,
     dsk::layer_norm_backward_workspace},
    {"quantize_int8", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::quantize_int8, nullptr},
    {"dequantize_int8", 1, DS_KERNEL_FLAG_DETERMINISTIC, dsk::dequantize_int8, nullptr},
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
