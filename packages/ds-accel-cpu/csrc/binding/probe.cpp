// Compiled for the baseline, without ISA flags and without LTO: it must run anywhere in order to answer.
#include "probe.h"

#if defined(__x86_64__)
#include "probe_x86_64.h"
#elif defined(__aarch64__) && defined(__linux__)
#include "probe_aarch64.h"
#else
namespace dsk {
constexpr const char* kLevelNames[] = {"baseline"};
struct Feature {
  const char* name;
  int since;
};
constexpr Feature kFeatures[] = {{"", 1}};
struct Machine {
  bool has(const Feature&) const { return false; }
};
inline std::string permission(int) { return ""; }
}  // namespace dsk
#endif

namespace dsk {
namespace {

constexpr int kLevels = sizeof(kLevelNames) / sizeof(kLevelNames[0]);

// Unless DSK_LEVELS of CMake said otherwise, or the compiler was too old, all are built.
bool is_built(const char* name) {
  const std::string names = std::string(",") + DSK_LEVELS + ",";
  return names.find(std::string(",") + name + ",") != std::string::npos;
}

std::string what_is_missing(const Machine& machine, int level) {
  std::string missing;
  for (const Feature& feature : kFeatures) {
    if (static_cast<int>(feature.since) > level || machine.has(feature)) continue;
    missing += missing.empty() ? "lacks " : ", ";
    missing += feature.name;
  }
  return missing;
}

}  // namespace

std::vector<Level> levels() {
  const Machine machine;
  std::vector<Level> found;
  for (int number = kLevels - 1; number >= 0; --number) {
    if (!is_built(kLevelNames[number])) continue;
    const std::string missing = what_is_missing(machine, number);
    found.push_back({kLevelNames[number], missing.empty(), missing});
  }
  return found;
}

std::string request_permission(const std::string& level) {
  const Machine machine;
  for (int number = 0; number < kLevels; ++number) {
    if (level != kLevelNames[number]) continue;
    const std::string missing = what_is_missing(machine, number);
    return missing.empty() ? permission(number) : missing;
  }
  return "has no such level";
}

std::vector<std::string> levels_left_out() {
  const std::string all = DSK_LEFT_OUT;  // separated by bars
  std::vector<std::string> found;
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = all.find('|', begin);
    found.push_back(all.substr(begin, end == std::string::npos ? end : end - begin));
    begin = end == std::string::npos ? all.size() : end + 1;
  }
  return found;
}

std::vector<std::string> features() {
  const Machine machine;
  std::vector<std::string> names;
  for (const Feature& feature : kFeatures) {
    if (machine.has(feature)) names.push_back(feature.name);
  }
  return names;
}

}  // namespace dsk
