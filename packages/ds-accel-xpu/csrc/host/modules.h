// The SPIR-V that is embedded in the library, by the name of its source file.
#pragma once

#include <cstddef>

namespace dsk {

struct Module {
  const char* name;
  const char* data;
  size_t size;
};

// NULL if there is none.
const Module* find_module(const char* name);

}  // namespace dsk
