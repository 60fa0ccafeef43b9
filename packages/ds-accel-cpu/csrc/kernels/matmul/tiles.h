// The tile registers of AMX: the instructions, or the same in plain C++ where DSK_EMULATE_TILES is defined.
//
// Note [Emulated tiles]
// The emulation exists to run the kernels that are written for tiles on machines that have none, in tests. It has the
// eight registers, traps when they are used before they are configured, and does the arithmetic the manual states.
// Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TDPBSUD,
// TDPBF16PS, TILESTORED, TILERELEASE.
#pragma once

#include "convert.h"
#include "fused.h"

#if defined(DSK_EMULATE_TILES) || (defined(__AMX_TILE__) && defined(__AMX_INT8__) && defined(__AMX_BF16__))
#define DSK_TILES 1

#if !defined(DSK_EMULATE_TILES)
#include <immintrin.h>
#endif

namespace dsk::matmul {

constexpr int kTileRows = 16;
constexpr int kTileBytes = 64;  // of a row

#if defined(DSK_EMULATE_TILES)

struct TileFile {
  bool is_configured;
  uint8_t tile[8][kTileRows][kTileBytes];
};

inline TileFile& all_tiles() {
  static thread_local TileFile file = {};
  return file;
}
inline uint8_t (&tile(int t)) [kTileRows][kTileBytes] {
  if (!all_tiles().is_configured) __builtin_trap();
  return all_tiles().tile[t];
} template <typename T>
                              inline T tile_element(int t, int row, int index) {
  T value;
  std::memcpy(&value, &tile(t)[row][static_cast<size_t>(index) * sizeof(T)], sizeof(T));
  return value;
}
template <typename T>
inline void set_tile_element(int t, int row, int index, T value) {
  std::memcpy(&tile(t)[row][static_cast<size_t>(index) * sizeof(T)], &value, sizeof(T));
}

// Tiles may be used while one of these lives, on its thread.
class TileScope {
 public:
  TileScope() {
    all_tiles() = {};
    all_tiles().is_configured = true;
  }
  ~TileScope() { all_tiles().is_configured = false; }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

template <int kTile>
inline void zero_tile() {
  std::memset(tile(kTile), 0, sizeof(tile(kTile)));
}
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  for (int row = 0; row < kTileRows; ++row) std::memcpy(tile(kTile)[row], at(from, row, stride), kTileBytes);
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  for (int row = 0; row < kTileRows; ++row) std::memcpy(at(to, row, stride), tile(kTile)[row], kTileBytes);
}

// kSum[m][n] += sum of signed bytes of kLeft[m] times unsigned bytes of kRight[k][n], four to a lane.
template <int kSum, int kLeft, int kRight>
inline void add_byte_products() {
  for (int m = 0; m < kTileRows; ++m) {
    for (int n = 0; n < 16; ++n) {
      uint32_t sum = tile_element<uint32_t>(kSum, m, n);
      for (int i = 0; i < kTileBytes; ++i) {
        const int32_t left = tile_element<int8_t>(kLeft, m, i);
        const int32_t right = tile_element<uint8_t>(kRight, i / 4, 4 * n + i % 4);
        sum += static_cast<uint32_t>(left * right);
      }
      set_tile_element(kSum, m, n, sum);
    }
  }
}

// kSum[m][n] += sum of bfloat16 pairs of kLeft[m] times those of kRight[k][n]; subnormals count as zero.
template <int kSum, int kLeft, int kRight>
inline void add_bf16_products() {
  const auto flushed = [](float x) { return (bits_of(x) & 0x7f800000u) == 0 ? float_of(bits_of(x) & 0x80000000u) : x; };
  for (int m = 0; m < kTileRows; ++m) {
    for (int n = 0; n < 16; ++n) {
      float sums[2] = {0.0f, 0.0f};  // of the first and of the second of each pair
      for (int i = 0; i < kTileBytes / 2; ++i) {
        const float left = float_of(static_cast<uint32_t>(tile_element<uint16_t>(kLeft, m, i)) << 16);
        const uint32_t right = tile_element<uint16_t>(kRight, i / 2, 2 * n + i % 2);
        sums[i % 2] = flushed(fma(flushed(left), flushed(float_of(right << 16)), sums[i % 2]));
      }
      const float sum = flushed(tile_element<float>(kSum, m, n)) + flushed(sums[0] + sums[1]);
      set_tile_element(kSum, m, n, flushed(sum));
    }
  }
}

#else

struct alignas(64) TileConfig {
  uint8_t palette;
  uint8_t start_row;
  uint8_t reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

class TileScope {
 public:
  TileScope() {
    TileConfig config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = kTileBytes;
      config.rows[i] = kTileRows;
    }
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// The intrinsics take the number of a tile as text of the instruction, so templates cannot use them.
template <int kTile>
DSK_INLINE void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
template <int kTile>
DSK_INLINE void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
DSK_INLINE void store_tile(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kSum, int kLeft, int kRight>
DSK_INLINE void add_byte_products() {
  __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}
template <int kSum, int kLeft, int kRight>
DSK_INLINE void add_bf16_products() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kLeft), "i"(kRight));
}

#endif

}  // namespace dsk::matmul

#endif
