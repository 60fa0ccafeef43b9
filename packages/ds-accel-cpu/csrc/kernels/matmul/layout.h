// Packed weights (ds_kernel/matmul.h says how they lie), and the rows of x that are worked on together.
#pragma once

#include "common.h"
#include "ds_kernel.h"

namespace dsk::matmul {

constexpr int kBlockOutputs = 16;
constexpr int kPanel = 64;          // outputs of a task: four blocks
constexpr int kRowBlock = 6;        // rows of a register tile
constexpr int64_t kRowChunk = 240;  // rows whose inputs are prepared at once; bounds the workspace
constexpr int64_t kInputUnit = 64;  // inputs are filled up to a multiple of it

inline int64_t round_up(int64_t a, int64_t unit) { return ceil_div(a, unit) * unit; }

// The sizes of one call.
struct Shape {
  int64_t inputs;  // filled up to a multiple of 8: where the loops end
  int64_t group_size;
  int64_t groups;
  int64_t blocks;  // of outputs
  int64_t block_bytes;
  int64_t panels;
};

inline Shape shape_of(const ds_linear_args& a) {
  Shape s;
  s.inputs = round_up(a.inputs, 8);
  s.group_size = a.group_size < a.inputs ? a.group_size : max64(s.inputs, 8);
  s.groups = ceil_div(a.inputs, s.group_size);
  s.blocks = ceil_div(a.outputs, kBlockOutputs);
  s.block_bytes = round_up(a.inputs, kInputUnit) * kBlockOutputs * a.bits / 8;
  s.panels = ceil_div(s.blocks * kBlockOutputs, kPanel);
  return s;
}

inline int32_t check(const ds_linear_args* a, const ds_exec* exec) {
  if (!usable(exec) || a->struct_size < sizeof(*a)) return DS_BAD_ARGUMENT;
  if (a->rows < 0 || a->inputs < 1 || a->outputs < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (a->format != 0) return DS_UNSUPPORTED_DTYPE;
  if (a->bits != 8 && a->bits != 4) return DS_BAD_ARGUMENT;
  if (a->group_size < a->inputs && a->group_size % 8 != 0) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  return DS_OK;
}

// Rows [first, first + count) as blocks of at most kRowBlock.
DSK_INLINE int64_t row_blocks(int64_t count) { return ceil_div(count, kRowBlock); }
DSK_INLINE int rows_in_block(int64_t count, int64_t block) {
  return static_cast<int>(min64(kRowBlock, count - block * kRowBlock));
}

// Calls body(std::integral_constant<int, rows>()).
template <typename Body>
DSK_INLINE void with_rows(int rows, const Body& body) {
  switch (rows) {
    case 1:
      return body(std::integral_constant<int, 1>());
    case 2:
      return body(std::integral_constant<int, 2>());
    case 3:
      return body(std::integral_constant<int, 3>());
    case 4:
      return body(std::integral_constant<int, 4>());
    case 5:
      return body(std::integral_constant<int, 5>());
    default:
      return body(std::integral_constant<int, kRowBlock>());
  }
}

// Pieces of the workspace, each aligned to a cache line.
class Arena {
 public:
  explicit Arena(void* memory) : next_(static_cast<char*>(memory)) {}
  template <typename T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(next_);
    next_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return taken;
  }

 private:
  char* next_;
};

}  // namespace dsk::matmul
