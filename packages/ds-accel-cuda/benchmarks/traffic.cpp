// Counts the bytes that emulated kernels read and write, by cache line.
//
// The kernels are compiled with a sanitizer's calls before each access, and these are the functions that it calls.
// Built by traffic.py together with the kernels and the emulation, which are not counted themselves.
#include <cstddef>
#include <cstdint>
#include <unordered_map>

namespace {

constexpr uintptr_t kLine = 64;

struct Counts {
  uint64_t read = 0;
  uint64_t written = 0;
  uint64_t accesses = 0;
};

std::unordered_map<uintptr_t, Counts>& lines() {
  static auto* const kept = new std::unordered_map<uintptr_t, Counts>;
  return *kept;
}

// An access over the end of a line counts for the line that it begins in.
void count(const void* address, std::size_t bytes, bool writes) {
  Counts& counts = lines()[reinterpret_cast<uintptr_t>(address) / kLine];
  (writes ? counts.written : counts.read) += bytes;
  ++counts.accesses;
}

}  // namespace

#define DSK_EXPORT extern "C" __attribute__((visibility("default")))

DSK_EXPORT void dsk_emulation_traffic_clear() { lines().clear(); }

// Of the lines of [begin, begin + bytes): bytes read, bytes written, number of accesses.
DSK_EXPORT void dsk_emulation_traffic(uintptr_t begin, uint64_t bytes, uint64_t* counts) {
  counts[0] = counts[1] = counts[2] = 0;
  for (uintptr_t line = begin / kLine; line * kLine < begin + bytes; ++line) {
    const auto found = lines().find(line);
    if (found == lines().end()) continue;
    counts[0] += found->second.read;
    counts[1] += found->second.written;
    counts[2] += found->second.accesses;
  }
}

#define DSK_COUNT(bytes)                                                                        \
  extern "C" void __asan_load##bytes##_noabort(void* address) { count(address, bytes, false); } \
  extern "C" void __asan_store##bytes##_noabort(void* address) { count(address, bytes, true); }
DSK_COUNT(1)
DSK_COUNT(2)
DSK_COUNT(4)
DSK_COUNT(8)
DSK_COUNT(16)
extern "C" void __asan_loadN_noabort(void* address, std::size_t bytes) { count(address, bytes, false); }
extern "C" void __asan_storeN_noabort(void* address, std::size_t bytes) { count(address, bytes, true); }
extern "C" void __asan_handle_no_return() {}
