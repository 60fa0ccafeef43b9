// quantize: groups of consecutive elements as codes with a scale each.
#include "quantize/groups.h"
#include "quantize/rows.h"

namespace dsk {
using namespace quant;
namespace {

template <class Format, bool kStochastic>
class Quantizer {
 public:
  Quantizer(const ds_quantize_args& a, const Rounding& rounding)
      : a_(a), rounding_(rounding), is_signed_(a.scaling == DS_SCALING_ASYMMETRIC) {}

  void run(int64_t first, int64_t last) const {
    if (a_.group_size > kBlock) {
      for (int64_t group = first; group < last; ++group) large_group(group);
    } else {
      chunk(first, last);
    }
  }

 private:
  const float* read(int64_t start, int64_t n, float* buffer) const {
    return read_block(a_.dtype, a_.x, start, n, buffer);
  }

  void look(Range& range, const float* x, int64_t n) const {
    widen(range, x, n);
    if (is_signed_) widen_signed(range, x, n);
  }

  static void encode(const Scale& s, const float* __restrict x, const uint32_t* __restrict random, int64_t n,
                     uint8_t* __restrict codes) {
    if (!s.finite) {  // the scale says it: dequantized, the whole group is NaN
      for (int64_t i = 0; i < n; ++i) codes[i] = Format::kZeroCode;
      return;
    }
    const float scale = s.scale;
    const int32_t lowest = s.lowest;
    const int32_t zero = s.zero;
    for (int64_t i = 0; i < n; ++i) {
      codes[i] = Format::template encode<kStochastic>(x[i] / scale, lowest, zero, kStochastic ? random[i] : 0u);
    }
  }

  void write(int64_t start, int64_t n, uint8_t* codes) const {
    constexpr int kUnit = codes_per_unit(Format::kBits);
    uint8_t* out = static_cast<uint8_t*>(a_.q) + start / kUnit * unit_bytes(Format::kBits);
    pack_codes<Format::kBits>(codes, n, out);
  }

  void chunk(int64_t first, int64_t last) const {
    alignas(64) float buffer[kBlock];
    alignas(64) uint32_t random[kStochastic ? kBlock : 1];
    alignas(64) uint8_t codes[kBlock + 4];
    const int64_t start = first * a_.group_size;
    const int64_t n = min64(last * a_.group_size, a_.numel) - start;
    const float* x = read(start, n, buffer);
    if (kStochastic) random_block(rounding_, start, n, random);
    for (int64_t group = first; group < last; ++group) {
      const int64_t at = (group - first) * a_.group_size;
      const int64_t count = min64(a_.group_size, n - at);
      Range range;
      look(range, x + at, count);
      encode(store_scale<Format>(a_, group, range), x + at, kStochastic ? random + at : random, count, codes + at);
    }
    write(start, n, codes);
  }

  void large_group(int64_t group) const {
    alignas(64) float buffer[kBlock];
    alignas(64) uint32_t random[kStochastic ? kBlock : 1];
    alignas(64) uint8_t codes[kBlock + 4];
    const int64_t start = group * a_.group_size;
    const int64_t count = min64(a_.group_size, a_.numel - start);
    Range range;
    for_blocks(count, [&](int64_t first, int64_t n) { look(range, read(start + first, n, buffer), n); });
    const Scale scale = store_scale<Format>(a_, group, range);
    for_blocks(count, [&](int64_t first, int64_t n) {
      if (kStochastic) random_block(rounding_, start + first, n, random);
      encode(scale, read(start + first, n, buffer), random, n, codes);
      write(start + first, n, codes);
    });
  }

  const ds_quantize_args& a_;
  const Rounding rounding_;
  const bool is_signed_;
};

template <class Format>
bool run(const ds_quantize_args& a, const ds_exec* exec) {
  if (a.group_size % codes_per_unit(Format::kBits) != 0) return false;
  if (a.scaling != DS_SCALING_SYMMETRIC &&
      a.scaling != (Format::kIsInteger ? DS_SCALING_ASYMMETRIC : DS_SCALING_POWER_OF_TWO)) {
    return false;
  }
  const Rounding rounding = make_rounding(a.rounding_seed, a.rounding_offset, 0);
  if (rounding.stochastic) {
    const Quantizer<Format, true> quantizer(a, rounding);
    for_group_runs(exec, a.numel, a.group_size, [&](int64_t first, int64_t last) { quantizer.run(first, last); });
  } else {
    const Quantizer<Format, false> quantizer(a, rounding);
    for_group_runs(exec, a.numel, a.group_size, [&](int64_t first, int64_t last) { quantizer.run(first, last); });
  }
  return true;
}

}  // namespace

int32_t quantize(const void* arguments, const ds_exec* exec) {
  const ds_quantize_args* a = static_cast<const ds_quantize_args*>(arguments);
  if (!usable(exec) || a->struct_size < sizeof(*a) || a->numel < 0 || a->group_size < 1) return DS_BAD_ARGUMENT;
  if (!is_float(a->dtype)) return DS_UNSUPPORTED_DTYPE;
  const bool done = with_format(a->format, [&](auto format) { return run<decltype(format)>(*a, exec); });
  return done ? DS_OK : DS_BAD_ARGUMENT;
}

}  // namespace dsk
