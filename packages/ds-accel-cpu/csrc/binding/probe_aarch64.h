// aarch64 on Linux: levels, the features that each is compiled with, and how the kernel tells. For probe.cpp.
#pragma once

#include <sys/auxv.h>

#include <string>

namespace dsk {

enum LevelNumber { kNeon, kSve, kNoLevel };

// Least first; each needs what those before it need.
constexpr const char* kLevelNames[] = {"aarch64_neon", "aarch64_sve"};

enum Word { kHwcap, kHwcap2 };

struct Feature {
  const char* name;   // as in /proc/cpuinfo
  LevelNumber since;  // the first level whose flags in CMakeLists.txt use it; kNoLevel: reported only
  Word where;
  int bit;
};

// The kernel shows only what it also saves. Source: Documentation/arch/arm64/elf_hwcaps.rst and asm/hwcap.h.
constexpr Feature kFeatures[] = {
    {"fp", kNeon, kHwcap, 0},           {"asimd", kNeon, kHwcap, 1},       {"crc32", kSve, kHwcap, 7},
    {"atomics", kSve, kHwcap, 8},       {"fphp", kSve, kHwcap, 9},         {"asimdhp", kSve, kHwcap, 10},
    {"asimdrdm", kSve, kHwcap, 12},     {"sve", kSve, kHwcap, 22},         {"asimddp", kNoLevel, kHwcap, 20},
    {"sve2", kNoLevel, kHwcap2, 1},     {"i8mm", kNoLevel, kHwcap2, 13},   {"bf16", kNoLevel, kHwcap2, 14},
    {"svebf16", kNoLevel, kHwcap2, 12}, {"svei8mm", kNoLevel, kHwcap2, 9},
};

class Machine {
 public:
  bool has(const Feature& feature) const { return ((words_[feature.where] >> feature.bit) & 1u) != 0; }

 private:
  unsigned long words_[2] = {getauxval(AT_HWCAP), getauxval(AT_HWCAP2)};
};

inline std::string permission(int) { return ""; }

}  // namespace dsk
