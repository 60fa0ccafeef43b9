// paged_kv_write_: a block for each token, which copies its rows as whole words where addresses allow it.
#include "attention/paged.h"
#include "attention/rows.h"

namespace dsk {
namespace {

constexpr int kWriteThreads = 128;

// Strides and sizes in elements of type Word.
template <typename Word>
struct Write {
  Cache<Word> keys;
  Cache<Word> values;
  const Word* key;
  const Word* value;
  Indices slots;
  int64_t capacity;
  int64_t block_size;
  int kv_heads;
  int dim;
};

template <typename Word>
__global__ void __launch_bounds__(kWriteThreads) write_kernel(const Write<Word> call) {
  const int64_t token = blockIdx.x;
  const int64_t slot = call.slots[token];
  if (slot == -1) return;
  if (slot < 0 || slot >= call.capacity) {
    report_bad_index();
    return;
  }
  const int64_t block = slot / call.block_size, place = slot % call.block_size;
  const int words = call.kv_heads * call.dim;
  for (int i = threadIdx.x; i < words; i += kWriteThreads) {
    const int head = i / call.dim, column = i % call.dim;
    call.keys.row(block, place, head)[column] = call.key[token * words + i];
    call.values.row(block, place, head)[column] = call.value[token * words + i];
  }
}

template <typename Word>
int32_t write(const ds_paged_kv_write_args* a, const ds_exec* exec, int64_t element_bytes) {
  const int64_t each = static_cast<int64_t>(sizeof(Word)) / element_bytes;
  const Write<Word> call = {{static_cast<Word*>(a->key_cache), a->key_block_stride / each, a->key_slot_stride / each,
                             a->key_head_stride / each},
                            {static_cast<Word*>(a->value_cache), a->value_block_stride / each,
                             a->value_slot_stride / each, a->value_head_stride / each},
                            static_cast<const Word*>(a->key),
                            static_cast<const Word*>(a->value),
                            {a->slots, a->index_dtype == DS_I64},
                            a->blocks * a->block_size,
                            a->block_size,
                            static_cast<int>(a->kv_heads),
                            static_cast<int>(a->dim / each)};
  return launch(exec, Shape(static_cast<unsigned>(a->tokens), kWriteThreads), write_kernel<Word>, call);
}

// Whether all rows are whole words of so many elements.
bool fits(const ds_paged_kv_write_args* a, int64_t element_bytes, int64_t each) {
  const int64_t all = a->dim | a->key_block_stride | a->key_slot_stride | a->key_head_stride | a->value_block_stride |
                      a->value_slot_stride | a->value_head_stride;
  const uintptr_t bytes = static_cast<uintptr_t>(element_bytes * each);
  return all % each == 0 && all_aligned(bytes, a->key_cache, a->value_cache, a->key, a->value);
}

}  // namespace

int32_t paged_kv_write(const void* arguments, const ds_exec* exec) {
  const auto* a = static_cast<const ds_paged_kv_write_args*>(arguments);
  const bool has_shape = is_valid(a, exec) && a->tokens >= 0 && a->tokens < (int64_t{1} << 31) && a->kv_heads > 0 &&
                         a->dim > 0 && a->kv_heads * a->dim < (int64_t{1} << 31) && a->blocks >= 0 && a->block_size > 0;
  if (!has_shape) return DS_BAD_ARGUMENT;
  if (!is_index(a->index_dtype) || !is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const int64_t bytes = a->dtype == DS_F32 ? 4 : 2;
  if (fits(a, bytes, 16 / bytes)) return write<Pack<uint32_t, 4>>(a, exec, bytes);
  return bytes == 4 ? write<uint32_t>(a, exec, bytes) : write<uint16_t>(a, exec, bytes);
}

}  // namespace dsk
