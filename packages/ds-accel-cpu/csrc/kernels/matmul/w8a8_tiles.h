// Integer products of kTileRows rows and up to four blocks of outputs, in tile registers.
#pragma once

#include "matmul/layout.h"
#include "matmul/tiles.h"

#if defined(DSK_TILES)

namespace dsk::matmul {

// The codes of kInputUnit inputs of a block, a byte each: where they lie, or unpacked into `buffer`.
inline const uint8_t* tile_codes(const uint8_t* block, int32_t bits, int64_t input, uint8_t* buffer) {
  const uint8_t* from = block + input * kBlockOutputs * bits / 8;
  if (bits == 8) return from;
  constexpr int kLine = 4 * kBlockOutputs;  // bytes of a word of each output
  for (int line = 0; line < 8; ++line) {
    for (int i = 0; i < kLine; ++i) {
      buffer[(2 * line) * kLine + i] = from[line * kLine + i] & 15;
      buffer[(2 * line + 1) * kLine + i] = from[line * kLine + i] >> 4;
    }
  }
  return buffer;
}

// sums[row][kPanel] = sum over inputs [begin, end) of x * code. x is signed, [row][stride].
inline void tile_sums(const int8_t* x, int64_t stride, const uint8_t* codes, int64_t block_bytes, int32_t bits,
                      int64_t blocks, int64_t begin, int64_t end, int32_t* sums) {
  alignas(64) uint8_t buffer[4][kTileRows * kTileBytes];
  constexpr int64_t kSumStride = kPanel * 4;
  const auto right = [&](int64_t block, int64_t input) {  // blocks that are not there repeat the first
    return tile_codes(codes + (block < blocks ? block : 0) * block_bytes, bits, input, buffer[block]);
  };
  zero_tile<0>();
  zero_tile<1>();
  zero_tile<2>();
  zero_tile<3>();
  for (int64_t input = begin; input < end; input += kInputUnit) {
    load_tile<4>(x + input, stride);
    load_tile<5>(right(0, input), kTileBytes);
    add_byte_products<0, 4, 5>();
    load_tile<6>(right(1, input), kTileBytes);
    add_byte_products<1, 4, 6>();
    load_tile<7>(right(2, input), kTileBytes);
    add_byte_products<2, 4, 7>();
    load_tile<5>(right(3, input), kTileBytes);
    add_byte_products<3, 4, 5>();
  }
  store_tile<0>(sums, kSumStride);
  store_tile<1>(sums + 16, kSumStride);
  store_tile<2>(sums + 32, kSumStride);
  store_tile<3>(sums + 48, kSumStride);
}

}  // namespace dsk::matmul

#endif
