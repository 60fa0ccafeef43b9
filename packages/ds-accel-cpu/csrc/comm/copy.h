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

// Copies past the caches, so that the lines of `to` are not fetched first: for results that are too long to stay there.
inline void copy_past_caches(void* to, const void* from, int64_t bytes) {
#if defined(__SSE2__)
  char* target = static_cast<char*>(to);
  const char* source = static_cast<const char*>(from);
  const int64_t ahead = static_cast<int64_t>((64 - (reinterpret_cast<uintptr_t>(target) & 63)) & 63);
  const int64_t head = ahead < bytes ? ahead : bytes;
  copy(target, source, head);
  int64_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    for (int64_t part = 0; part < 64; part += 16) {
      const __m128i value = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i + part));
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + i + part), value);
    }
  }
  copy(target + i, source + i, bytes - i);
  _mm_sfence();
#else
  copy(to, from, bytes);
#endif
}

}  // namespace dsc
