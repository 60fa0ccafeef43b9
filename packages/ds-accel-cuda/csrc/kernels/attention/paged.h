// A ragged batch over a blocked cache, as kernels see it: which tokens a tile holds, and where their keys lie.
#pragma once

#include "attention/tile.h"

namespace dsk {

// An index tensor of int32 or int64.
struct Indices {
  const void* data;
  bool wide;

  DSK_DEVICE int64_t operator[](int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
};

inline bool is_index(int32_t dtype) { return dtype == DS_I32 || dtype == DS_I64; }

// A cache [blocks, block_size, kv_heads, dim].
template <typename T>
struct Cache {
  T* data;
  int64_t block_stride;
  int64_t slot_stride;
  int64_t head_stride;

  DSK_DEVICE T* row(int64_t block, int64_t slot, int64_t head) const {
    return data + block * block_stride + slot * slot_stride + head * head_stride;
  }
};

struct Batch {
  Indices table;
  Indices lengths;
  Indices starts;
  int64_t tokens;
  int64_t sequences;
  int64_t table_width;
  int64_t blocks;
  int64_t block_size;
  int64_t group;  // heads that share keys
  int64_t window;

  DSK_DEVICE int64_t start(int64_t s) const { return min64(max64(starts[s], 0), tokens); }

  // Whether the numbers of a sequence fit together.
  DSK_DEVICE bool is_sound(int64_t s) const {
    const int64_t begin = starts[s], end = starts[s + 1], length = lengths[s];
    const bool in_order = begin >= 0 && begin <= end && end <= tokens && (s > 0 || begin == 0);
    return in_order && (begin == end || (end - begin <= length && length <= table_width * block_size));
  }
};

// Note [Tiles of a ragged batch]
// The rows of a sequence and a key head are its tokens times the heads that share those keys, token by token, so that a
// single token of grouped heads fills a tile. Tiles belong to one sequence. That of number `t` is found without a list:
// the tiles of sequence s begin at number start(s) * group / rows + s, which leaves at least as many as are needed
// until those of s + 1; some stay empty. Tokens after the last sequence are one more sequence, which has no keys.
template <int Rows>
struct RaggedTile {
  int64_t sequence;
  int64_t begin;   // first token of the sequence
  int64_t count;   // its tokens
  int64_t length;  // its keys
  int64_t first;   // row of the sequence that the tile begins with

  DSK_DEVICE static int64_t first_tile(const Batch& batch, int64_t s) {
    return batch.start(s) * batch.group / Rows + s;
  }
  static int64_t tiles(int64_t tokens, int64_t group, int64_t sequences) {
    return tokens * group / Rows + sequences + 1;
  }

  DSK_DEVICE RaggedTile(const Batch& batch, int64_t tile) {
    int64_t low = 0, high = batch.sequences;
    while (low < high) {
      const int64_t middle = (low + high + 1) / 2;
      if (first_tile(batch, middle) <= tile) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    sequence = low;
    begin = batch.start(low);
    first = (tile - first_tile(batch, low)) * Rows;
    const bool padding = low == batch.sequences;
    const bool usable = !padding && batch.is_sound(low);
    count = padding ? batch.tokens - begin : usable ? batch.starts[low + 1] - begin : 0;
    length = usable ? batch.lengths[low] : 0;
  }

  DSK_DEVICE bool is_empty(const Batch& batch) const { return first >= count * batch.group; }
  DSK_DEVICE bool has_row(const Batch& batch, int row) const { return first + row < count * batch.group; }
  DSK_DEVICE int64_t token(const Batch& batch, int row) const { return begin + (first + row) / batch.group; }
  DSK_DEVICE int64_t head(const Batch& batch, int row) const { return (first + row) % batch.group; }
  // Where the token of a row stands in its sequence.
  DSK_DEVICE int64_t position(const Batch& batch, int row) const {
    return length - count + (first + row) / batch.group;
  }
};

// Keys that a block walks over, [first, last), of which those before `seen` are seen by no row of its tile.
struct KeyRange {
  int64_t seen;
  int64_t first;
  int64_t last;
};

// Keys seen from positions `low` to `high`, and of those part `split` of `splits`. Parts begin at multiples of `unit`,
// so that a row meets its keys in the same groups whatever rows share its tile.
DSK_DEVICE KeyRange keys_of(int64_t window, int64_t low, int64_t high, int64_t split, int64_t splits, int64_t unit) {
  const int64_t seen = window > 0 ? max64(0, low - window + 1) : 0;
  const int64_t first = seen / unit * unit;
  const int64_t last = high + 1;
  const int64_t part = ceil_div(ceil_div(max64(last - first, 0), splits), unit) * unit;
  return {seen, min64(last, first + split * part), min64(last, first + (split + 1) * part)};
}

}  // namespace dsk
