// reduce_ranks: the tensors of several ranks become one, element by element, added from the first rank to the last.
#include "convert.h"
#include "reduce/rows.h"

namespace dsk {
namespace {

// Integers wrap around, so they are added and multiplied without a sign.
template <typename T, typename = void>
struct Wrapping {
  using type = T;
};
template <typename T>
struct Wrapping<T, std::enable_if_t<std::is_integral<T>::value>> {
  using type = std::make_unsigned_t<T>;
};

struct Sum {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    using Wide = typename Wrapping<T>::type;
    return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
  }
};
struct Product {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    using Wide = typename Wrapping<T>::type;
    return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
  }
};
struct Minimum {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    return a < b || a != a ? a : b;
  }
};
struct Maximum {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    return a > b || a != a ? a : b;
  }
};
struct BitAnd {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    return static_cast<T>(a & b);
  }
};
struct BitOr {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    return static_cast<T>(a | b);
  }
};
struct BitXor {
  template <typename T>
  static DSK_INLINE T of(T a, T b) {
    return static_cast<T>(a ^ b);
  }
};

// The block may be written over an input, element for element, which the compiler cannot know: hence the promise.
template <typename T, typename Value>
DSK_INLINE void write(T* out, int64_t n, const Value& value) {
#pragma GCC ivdep
  for (int64_t i = 0; i < n; ++i) out[i] = value(i);
}

// One block of a type that is reduced as it is. The running value stays in `total`, so that no input is overwritten
// before it is read.
template <typename T, typename Op, bool kDivide>
void reduce_block(const ds_reduce_ranks_args& a, int64_t first, int64_t n, T* __restrict total, T* out) {
  const T divisor = kDivide ? static_cast<T>(a.count) : T(1);
  auto input = [&a, first](int32_t rank) { return static_cast<const T*>(a.inputs[rank]) + first; };
  auto finish = [divisor](T value) { return kDivide ? static_cast<T>(value / divisor) : value; };
  const T* const head = input(0);
  const T* const last = input(a.count - 1);
  if (a.count == 1) {
    write(out, n, [=](int64_t i) { return head[i]; });
    return;
  }
  if (a.count == 2) {
    write(out, n, [=](int64_t i) { return finish(Op::of(head[i], last[i])); });
    return;
  }
  const T* const second = input(1);
  for (int64_t i = 0; i < n; ++i) total[i] = Op::of(head[i], second[i]);
  for (int32_t rank = 2; rank < a.count - 1; ++rank) {
    const T* const next = input(rank);
    for (int64_t i = 0; i < n; ++i) total[i] = Op::of(total[i], next[i]);
  }
  write(out, n, [=](int64_t i) { return finish(Op::of(total[i], last[i])); });
}

// One block of bfloat16 or float16: float32 inside, rounded once.
template <typename Op, bool kDivide>
void reduce_half_block(const ds_reduce_ranks_args& a, int64_t first, int64_t n, float* __restrict total,
                       float* __restrict next, void* out) {
  load_block(a.dtype, at(a.inputs[0], first, 2), total, n);
  for (int32_t rank = 1; rank < a.count; ++rank) {
    load_block(a.dtype, at(a.inputs[rank], first, 2), next, n);
    for (int64_t i = 0; i < n; ++i) total[i] = Op::of(total[i], next[i]);
  }
  if (kDivide) {
    const float divisor = static_cast<float>(a.count);
    for (int64_t i = 0; i < n; ++i) total[i] = total[i] / divisor;
  }
  store_block(a.dtype, total, out, n);
}

// Calls block(first, n, out) for blocks of kBlock elements, which writes its result to `out`; from there, still in the
// first-level cache, it goes on past the caches.
template <typename Block>
int32_t over_blocks(const ds_reduce_ranks_args& a, int64_t bytes, const Block& block) {
  alignas(64) char staged[kBlock * 8];
  for (int64_t first = 0; first < a.numel; first += kBlock) {
    const int64_t n = min64(kBlock, a.numel - first);
    char* const out = at(a.out, first, bytes);
    char* const near = a.past_caches != 0 ? staged : out;
    block(first, n, static_cast<void*>(near));
    if (near != out) stream_out(near, out, n * bytes);
    if (a.copy != nullptr) stream_out(near, at(a.copy, first, bytes), n * bytes);
  }
  stream_fence();
  return DS_OK;
}

template <typename T, typename Op, bool kDivide = false>
int32_t reduce(const ds_reduce_ranks_args& a) {
  alignas(64) T total[kBlock];
  return over_blocks(a, sizeof(T), [&](int64_t first, int64_t n, void* out) {
    reduce_block<T, Op, kDivide>(a, first, n, total, static_cast<T*>(out));
  });
}

template <typename Op, bool kDivide = false>
int32_t reduce_half(const ds_reduce_ranks_args& a) {
  alignas(64) float total[kBlock];
  alignas(64) float next[kBlock];
  return over_blocks(a, 2, [&](int64_t first, int64_t n, void* out) {
    reduce_half_block<Op, kDivide>(a, first, n, total, next, out);
  });
}

template <typename T>
int32_t reduce_float(const ds_reduce_ranks_args& a) {
  switch (a.op) {
    case DS_SUM:
      return reduce<T, Sum>(a);
    case DS_AVERAGE:
      return reduce<T, Sum, true>(a);
    case DS_PRODUCT:
      return reduce<T, Product>(a);
    case DS_MINIMUM:
      return reduce<T, Minimum>(a);
    case DS_MAXIMUM:
      return reduce<T, Maximum>(a);
    default:
      return DS_BAD_ARGUMENT;
  }
}

int32_t reduce_halves(const ds_reduce_ranks_args& a) {
  switch (a.op) {
    case DS_SUM:
      return reduce_half<Sum>(a);
    case DS_AVERAGE:
      return reduce_half<Sum, true>(a);
    case DS_PRODUCT:
      return reduce_half<Product>(a);
    case DS_MINIMUM:
      return reduce_half<Minimum>(a);
    case DS_MAXIMUM:
      return reduce_half<Maximum>(a);
    default:
      return DS_BAD_ARGUMENT;
  }
}

template <typename T>
int32_t reduce_integer(const ds_reduce_ranks_args& a) {
  switch (a.op) {
    case DS_SUM:
      return reduce<T, Sum>(a);
    case DS_PRODUCT:
      return reduce<T, Product>(a);
    case DS_MINIMUM:
      return reduce<T, Minimum>(a);
    case DS_MAXIMUM:
      return reduce<T, Maximum>(a);
    case DS_BIT_AND:
      return reduce<T, BitAnd>(a);
    case DS_BIT_OR:
      return reduce<T, BitOr>(a);
    case DS_BIT_XOR:
      return reduce<T, BitXor>(a);
    default:
      return DS_BAD_ARGUMENT;
  }
}

int32_t reduce_boolean(const ds_reduce_ranks_args& a) {
  switch (a.op) {
    case DS_SUM:
    case DS_MAXIMUM:
    case DS_BIT_OR:
      return reduce<uint8_t, BitOr>(a);
    case DS_PRODUCT:
    case DS_MINIMUM:
    case DS_BIT_AND:
      return reduce<uint8_t, BitAnd>(a);
    case DS_BIT_XOR:
      return reduce<uint8_t, BitXor>(a);
    default:
      return DS_BAD_ARGUMENT;
  }
}

}  // namespace

int32_t reduce_ranks(const void* arguments, const ds_exec* exec) {
  const ds_reduce_ranks_args* a = static_cast<const ds_reduce_ranks_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(ds_reduce_ranks_args) || a->numel < 0 || a->count < 1) {
    return DS_BAD_ARGUMENT;
  }
  switch (a->dtype) {
    case DS_F32:
      return reduce_float<float>(*a);
    case DS_F64:
      return reduce_float<double>(*a);
    case DS_BF16:
    case DS_F16:
      return reduce_halves(*a);
    case DS_I8:
      return reduce_integer<int8_t>(*a);
    case DS_U8:
      return reduce_integer<uint8_t>(*a);
    case DS_I32:
      return reduce_integer<int32_t>(*a);
    case DS_I64:
      return reduce_integer<int64_t>(*a);
    case DS_BOOL:
      return reduce_boolean(*a);
    default:
      return DS_UNSUPPORTED_DTYPE;
  }
}

}  // namespace dsk
