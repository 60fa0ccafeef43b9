// Which instruction-set levels this processor and this operating system can run.
#pragma once

#include <string>
#include <vector>

namespace dsk {

struct Level {
  const char* name;
  bool usable;
  std::string reason;  // what is missing, when not usable
};

// Every level this build has a library for, best first.
std::vector<Level> levels();

// Names of the processor features that matter to the levels and are usable here.
std::vector<std::string> features();

}  // namespace dsk
