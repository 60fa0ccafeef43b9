// Compiled for the baseline, without ISA flags and without LTO: it must run anywhere in order to answer.
#include "probe.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include <cstdint>

namespace dsk {
namespace {

#if defined(__x86_64__)

struct Registers {
  uint32_t eax, ebx, ecx, edx;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r = {0, 0, 0, 0};
  if (__get_cpuid_max(leaf & 0x80000000u, nullptr) >= leaf) __cpuid_count(leaf, subleaf, r.eax, r.ebx, r.ecx, r.edx);
  return r;
}

// What the operating system saves on a context switch; without it an instruction of that width faults.
uint64_t xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

struct Feature {
  const char* name;
  int level;  // 2, 3, 4: needed by that psABI level and all above; 0: reported only
  bool present;
};

std::vector<Feature> probe() {
  const Registers one = cpuid(1, 0);
  const Registers seven = cpuid(7, 0);
  const Registers seven_one = cpuid(7, 1);
  const Registers extended = cpuid(0x80000001u, 0);
  const bool osxsave = (one.ecx >> 27) & 1;
  const uint64_t saved = osxsave ? xcr0() : 0;
  const bool ymm = (saved & 0x6) == 0x6;
  const bool zmm = (saved & 0xe6) == 0xe6;
  const bool tile = (saved & 0x60000) == 0x60000;
  const auto bit = [](uint32_t value, int index) { return ((value >> index) & 1u) != 0; };
  return {
      {"cx16", 2, bit(one.ecx, 13)},
      {"lahf", 2, bit(extended.ecx, 0)},
      {"popcnt", 2, bit(one.ecx, 23)},
      {"sse3", 2, bit(one.ecx, 0)},
      {"ssse3", 2, bit(one.ecx, 9)},
      {"sse4.1", 2, bit(one.ecx, 19)},
      {"sse4.2", 2, bit(one.ecx, 20)},
      {"avx", 3, bit(one.ecx, 28) && ymm},
      {"avx2", 3, bit(seven.ebx, 5) && ymm},
      {"bmi1", 3, bit(seven.ebx, 3)},
      {"bmi2", 3, bit(seven.ebx, 8)},
      {"f16c", 3, bit(one.ecx, 29) && ymm},
      {"fma", 3, bit(one.ecx, 12) && ymm},
      {"lzcnt", 3, bit(extended.ecx, 5)},
      {"movbe", 3, bit(one.ecx, 22)},
      {"osxsave", 3, osxsave},
      {"avx512f", 4, bit(seven.ebx, 16) && zmm},
      {"avx512bw", 4, bit(seven.ebx, 30) && zmm},
      {"avx512cd", 4, bit(seven.ebx, 28) && zmm},
      {"avx512dq", 4, bit(seven.ebx, 17) && zmm},
      {"avx512vl", 4, bit(seven.ebx, 31) && zmm},
      {"avx512_vnni", 0, bit(seven.ecx, 11) && zmm},
      {"avx512_bf16", 0, bit(seven_one.eax, 5) && zmm},
      {"amx_tile", 0, bit(seven.edx, 24) && tile},
      {"amx_bf16", 0, bit(seven.edx, 22) && tile},
      {"amx_int8", 0, bit(seven.edx, 25) && tile},
  };
}

Level level(const char* name, int number) {
  std::string missing;
  for (const Feature& feature : probe()) {
    if (feature.level == 0 || feature.level > number || feature.present) continue;
    missing += missing.empty() ? "" : ", ";
    missing += feature.name;
  }
  return {name, missing.empty(), missing.empty() ? "" : "lacks " + missing};
}

#endif

// Those of `known` whose library was built, which is all of them unless DSK_LEVELS said otherwise.
std::vector<Level> built(const std::vector<Level>& known) {
  const std::string names = std::string(",") + DSK_LEVELS + ",";
  std::vector<Level> found;
  for (const Level& each : known) {
    if (names.find(std::string(",") + each.name + ",") != std::string::npos) found.push_back(each);
  }
  return found;
}

}  // namespace

#if defined(__x86_64__)

std::vector<Level> levels() { return built({level("x86_64_v4", 4), level("x86_64_v3", 3), level("x86_64_v2", 2)}); }

std::vector<std::string> features() {
  std::vector<std::string> names;
  for (const Feature& feature : probe()) {
    if (feature.present) names.push_back(feature.name);
  }
  return names;
}

#else

std::vector<Level> levels() { return built({{"baseline", true, ""}}); }

std::vector<std::string> features() { return {}; }

#endif

}  // namespace dsk
