#include "modules.h"

#include <cstring>

#ifndef DSK_SPIRV_FOLDER
#error "define DSK_SPIRV_FOLDER as the folder of the .spv files"
#endif

#define DSK_MODULES(row) \
  row(activation) row(loss) row(matmul) row(norm) row(optim) row(quantize) row(softmax) row(sums) row(tokens)

#define DSK_EMBED(name)                                                           \
  asm(".pushsection .rodata\n"                                                    \
      ".balign 16\n"                                                              \
      "dsk_spirv_" #name                                                          \
      ":\n"                                                                       \
      ".incbin \"" DSK_SPIRV_FOLDER "/" #name                                     \
      ".spv\"\n"                                                                  \
      "dsk_spirv_" #name                                                          \
      "_end:\n"                                                                   \
      ".popsection\n");                                                           \
  extern "C" __attribute__((visibility("hidden"))) const char dsk_spirv_##name[]; \
  extern "C" __attribute__((visibility("hidden"))) const char dsk_spirv_##name##_end[];
DSK_MODULES(DSK_EMBED)

namespace dsk {
namespace {

#define DSK_ROW(name) {#name, dsk_spirv_##name, static_cast<size_t>(dsk_spirv_##name##_end - dsk_spirv_##name)},
const Module kModules[] = {DSK_MODULES(DSK_ROW)};

}  // namespace

const Module* find_module(const char* name) {
  for (const Module& module : kModules) {
    if (std::strcmp(module.name, name) == 0) return &module;
  }
  return nullptr;
}

}  // namespace dsk
