// Which instruction-set levels this processor and this operating system can run.
#pragma once

#include <string>
#include <vector>

namespace dsk {

struct Level {
  const char* name;
  bool usable;
  std::string reason;  // what is missing, when not usable; reads on after "the machine"
};

// Every level this build has a library for, best first.
std::vector<Level> levels();

// Asks the operating system for what the code of a level may only use with its permission, which lasts as long as the
// process. Empty when the level may run; otherwise the reason, as in Level. Call it before the level's library is used.
std::string request_permission(const std::string& level);

// "level: reason" for each level that is known for this architecture and that this build has no library for.
std::vector<std::string> levels_left_out();

// Names of the processor features that matter to the levels and are usable here.
std::vector<std::string> features();

}  // namespace dsk
