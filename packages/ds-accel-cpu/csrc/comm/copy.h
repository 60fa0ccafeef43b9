// Copies between a rank's tensors and the segment.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace dsc {

inline void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<size_t>(bytes));
}

// Note [Past the caches]
// A line of a slot that another core has read must be taken back from its cache before it is written; that costs up to
// seven times as much as writing past the caches, which need not read or take back anything. The same holds for results
// that are too long to stay in a cache, whose old contents would be fetched only to be overwritten. (Measured on a Zen
// 4 with the reader on another core: 2 to 10 GB/s with ordinary stores, 12 to 17 GB/s past the caches; the reader gets
// 10 GB/s in both cases.)
constexpr int64_t kShort = 8 * 1024;  // below, what is written is read again at once

// Copies `bytes` to `to` and, where it is not null, to `also`; past the caches from kShort bytes on.
inline void copy_past_caches(void* to, void* also, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  char* const target = static_cast<char*>(to);
  char* const second = static_cast<char*>(also);
  const char* const source = static_cast<const char*>(from);
  const bool is_aligned =
      second == nullptr || ((reinterpret_cast<uintptr_t>(target) ^ reinterpret_cast<uintptr_t>(second)) & 15) == 0;
  if (bytes >= kShort && is_aligned) {
    const int64_t head = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(target) & 63)) & 63);
    const int64_t body = (bytes - head) / 64 * 64;
    copy(target, source, head);
    copy(target + head + body, source + head + body, bytes - head - body);
    if (second != nullptr) {
      copy(second, source, head);
      copy(second + head + body, source + head + body, bytes - head - body);
    }
    for (int64_t i = head; i < head + body; i += 64) {
      __m128i line[4];
      for (int part = 0; part < 4; ++part) {
        line[part] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + 16 * part));
      }
      for (int part = 0; part < 4; ++part) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + 16 * part), line[part]);
      }
      if (second == nullptr) continue;
      for (int part = 0; part < 4; ++part) {
        _mm_stream_si128(reinterpret_cast<__m128i*>(second + i + 16 * part), line[part]);
      }
    }
    _mm_sfence();
    return;
  }
#endif
  copy(to, from, bytes);
  if (also != nullptr) copy(also, from, bytes);
}

}  // namespace dsc
