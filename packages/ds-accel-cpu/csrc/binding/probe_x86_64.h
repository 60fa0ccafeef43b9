// x86-64: levels, the features that each is compiled with, and how the processor and the system tell. For probe.cpp.
#pragma once

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

namespace dsk {

enum LevelNumber { kV2, kV3, kV4, kV4Bf16, kAmx, kNoLevel };

// Least first; each needs what those before it need.
constexpr const char* kLevelNames[] = {"x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16", "x86_64_amx"};

enum Register { kOneEcx, kSevenEbx, kSevenEcx, kSevenEdx, kSevenOneEax, kExtendedEcx, kRegisters };

// Bits of XCR0: registers that the operating system saves on a context switch. Without them an instruction faults.
constexpr uint64_t kAny = 0x0, kYmm = 0x6, kZmm = 0xe6, kTiles = 0x60000;
constexpr int kTileData = 18;

struct Feature {
  const char* name;
  LevelNumber since;  // the first level whose flags in CMakeLists.txt use it; kNoLevel: reported only
  Register where;
  int bit;
  uint64_t saved;
};

// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID.
constexpr Feature kFeatures[] = {
    {"cx16", kV2, kOneEcx, 13, kAny},
    {"lahf", kV2, kExtendedEcx, 0, kAny},
    {"popcnt", kV2, kOneEcx, 23, kAny},
    {"sse3", kV2, kOneEcx, 0, kAny},
    {"ssse3", kV2, kOneEcx, 9, kAny},
    {"sse4.1", kV2, kOneEcx, 19, kAny},
    {"sse4.2", kV2, kOneEcx, 20, kAny},
    {"avx", kV3, kOneEcx, 28, kYmm},
    {"avx2", kV3, kSevenEbx, 5, kYmm},
    {"bmi1", kV3, kSevenEbx, 3, kAny},
    {"bmi2", kV3, kSevenEbx, 8, kAny},
    {"f16c", kV3, kOneEcx, 29, kYmm},
    {"fma", kV3, kOneEcx, 12, kYmm},
    {"lzcnt", kV3, kExtendedEcx, 5, kAny},
    {"movbe", kV3, kOneEcx, 22, kAny},
    {"osxsave", kV3, kOneEcx, 27, kAny},
    {"avx512f", kV4, kSevenEbx, 16, kZmm},
    {"avx512bw", kV4, kSevenEbx, 30, kZmm},
    {"avx512cd", kV4, kSevenEbx, 28, kZmm},
    {"avx512dq", kV4, kSevenEbx, 17, kZmm},
    {"avx512vl", kV4, kSevenEbx, 31, kZmm},
    {"avx512_vnni", kV4Bf16, kSevenEcx, 11, kZmm},
    {"avx512_bf16", kV4Bf16, kSevenOneEax, 5, kZmm},
    {"avx512_fp16", kAmx, kSevenEdx, 23, kZmm},
    {"amx_tile", kAmx, kSevenEdx, 24, kTiles},
    {"amx_bf16", kAmx, kSevenEdx, 22, kTiles},
    {"amx_int8", kAmx, kSevenEdx, 25, kTiles},
};

class Machine {
 public:
  Machine() {
    read(1, 0, {kRegisters, kRegisters, kOneEcx, kRegisters});
    read(7, 0, {kRegisters, kSevenEbx, kSevenEcx, kSevenEdx});
    read(7, 1, {kSevenOneEax, kRegisters, kRegisters, kRegisters});
    read(0x80000001u, 0, {kRegisters, kRegisters, kExtendedEcx, kRegisters});
    if ((values_[kOneEcx] >> 27) & 1u) saved_ = xcr0();
  }

  bool has(const Feature& feature) const {
    return ((values_[feature.where] >> feature.bit) & 1u) != 0 && (saved_ & feature.saved) == feature.saved;
  }

 private:
  struct Places {
    Register eax, ebx, ecx, edx;
  };

  void read(uint32_t leaf, uint32_t subleaf, const Places& to) {
    uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
    if (__get_cpuid_max(leaf & 0x80000000u, nullptr) >= leaf) __cpuid_count(leaf, subleaf, eax, ebx, ecx, edx);
    values_[to.eax] = eax;
    values_[to.ebx] = ebx;
    values_[to.ecx] = ecx;
    values_[to.edx] = edx;
  }

  static uint64_t xcr0() {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<uint64_t>(high) << 32) | low;
  }

  uint32_t values_[kRegisters + 1] = {};  // the last one takes what nobody asks for
  uint64_t saved_ = 0;
};

// Linux gives a process the 8 KiB of tile state only on request. Source: Documentation/arch/x86/xstate.rst.
inline std::string permission(int level) {
  if (level < kAmx) return "";
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr long kRequest = 0x1023;  // ARCH_REQ_XCOMP_PERM
  if (syscall(SYS_arch_prctl, kRequest, kTileData) == 0) return "";
  return std::string("was refused the AMX tile registers (arch_prctl: ") + std::strerror(errno) + ")";
#else
  return "has an operating system that this build cannot ask for the AMX tile registers";
#endif
}

}  // namespace dsk
