// The one symbol this library exports.
#include "rows.h"

#if !defined(DSK_TARGET) || !defined(DSK_BUILD)
#error "define DSK_TARGET and DSK_BUILD"
#endif

namespace dsk {
namespace {

#define DSK_ENTRY(name, function, workspace) {name, 1, DS_KERNEL_FLAG_DETERMINISTIC, function, workspace},
const ds_kernel_entry kEntries[] = {DSK_OPS(DSK_ENTRY)};

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
}  // namespace dsk

extern "C" DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &dsk::kDescriptor; }
