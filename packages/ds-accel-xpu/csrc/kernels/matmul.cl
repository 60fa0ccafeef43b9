// linear_weight_only: activations times weights of 8, 6 or 4 bits. ds_kernel/matmul.h says how packed weights lie.
//
// A work-group makes a tile of kRows rows by 16 outputs, the 16 of a block of packed weights. Its items are 16 outputs
// (neighbours read neighbouring words) times kSlices slices of the inputs; x comes through local memory, and the slices
// are added in order at the end.
#include "formats.h"

#define kOutputs 16
#define kSlices (kGroup / kOutputs)
#define kRows 8
#define kChunk 512 /* inputs in local memory at a time */
#define kStretch (kChunk / kSlices)
#define kStep 8 /* inputs that are sure to share a scale */

// Codes of kStep inputs of one output, of which the first is a multiple of kStep.
static inline void read_codes(int bits, const global uint* words, long output, long input, uint* codes) {
  if (bits == 8) {
    for (int k = 0; k < kStep; ++k)
      codes[k] = (words[(input / 4 + k / 4) * kOutputs + output] >> (8 * (k % 4))) & 0xffu;
  } else if (bits == 4) {
    const uint word = words[input / 8 * kOutputs + output];
    for (int k = 0; k < kStep; ++k) codes[k] = (word >> (8 * (k % 4) + 4 * (k / 4))) & 0xfu;
  } else {
    const long unit = input / 16 * 3;
    const int h = (int)(input / 8 % 2);
    const uint low = words[(unit + h) * kOutputs + output];
    const uint high = words[(unit + 2) * kOutputs + output];
    for (int k = 0; k < kStep; ++k) {
      const int place = 8 * (k % 4) + 4 * (k / 4);
      codes[k] = ((low >> place) & 0xfu) | (((high >> (place + 2 * h)) & 3u) << 4);
    }
  }
}

static inline float weight_of(int format, int bits, uint code) {
  switch (format) {
    case 0:
      return (float)((int)code - (bits == 8 ? 128 : 8));
    case 3:
      return E4M3::decode(code, 0);
    case 4:
      return E5M2::decode(code, 0);
    case 5:
      return E3M2::decode(code, 0);
    case 6:
      return E2M3::decode(code, 0);
    default:
      return E2M1::decode(code, 0);
  }
}

kernel void linear_weight_only(int dtype, int bits, int format, long rows, long inputs, long outputs, long group_size,
                               const global void* x, const global uchar* codes, const global float* scales,
                               const global char* zeros, const global float* bias, global void* y) {
  local float tile[kRows * kChunk];
  local float sums[kGroup * kRows];
  const uint here = (uint)get_local_id(0);
  const long output = (long)(here % kOutputs);
  const uint slice = here / kOutputs;
  const long blocks = (outputs + kOutputs - 1) / kOutputs;
  const long bundles = (rows + kRows - 1) / kRows;
  const long block_bytes = (inputs + 63) / 64 * 64 * kOutputs * bits / 8;
  for (long unit = (long)get_group_id(0); unit < blocks * bundles; unit += (long)get_num_groups(0)) {
    const long block = unit % blocks;  // neighbouring work-groups share rows of x
    const long first = unit / blocks * kRows;
    const global uint* words = (const global uint*)(codes + block * block_bytes);
    float total[kRows];
    for (int r = 0; r < kRows; ++r) total[r] = 0.0f;
    for (long start = 0; start < inputs; start += kChunk) {
      barrier(CLK_LOCAL_MEM_FENCE);
      for (uint i = here; i < kRows * kChunk; i += kGroup) {
        const long row = first + (long)(i / kChunk);
        const long input = start + (long)(i % kChunk);
        tile[i] = row < rows && input < inputs ? load(dtype, x, row * inputs + input) : 0.0f;
      }
      barrier(CLK_LOCAL_MEM_FENCE);
      for (uint step = slice * kStretch; step < (slice + 1u) * kStretch; step += kStep) {
        const long input = start + (long)step;
        if (input >= inputs) break;
        const long at = input / group_size * blocks * kOutputs + block * kOutputs + output;
        const float scale = scales[at];
        const float zero = zeros != 0 ? (float)zeros[at] : 0.0f;
        uint found[kStep];
        float weights[kStep];
        read_codes(bits, words, output, input, found);
        for (int k = 0; k < kStep; ++k) weights[k] = weight_of(format, bits, found[k]) - zero;
        for (int r = 0; r < kRows; ++r) {
          float part = 0.0f;
          for (int k = 0; k < kStep; ++k) part = fma(tile[(uint)r * kChunk + step + (uint)k], weights[k], part);
          total[r] = fma(scale, part, total[r]);
        }
      }
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    for (int r = 0; r < kRows; ++r) sums[((uint)r * kSlices + slice) * kOutputs + (uint)output] = total[r];
    barrier(CLK_LOCAL_MEM_FENCE);
    if (here < kRows * kOutputs) {
      const long row = first + (long)(here / kOutputs);
      const long column = block * kOutputs + output;
      float sum = 0.0f;
      for (uint s = 0; s < kSlices; ++s) sum += sums[(here / kOutputs * kSlices + s) * kOutputs + (uint)output];
      if (bias != 0 && column < outputs) sum += bias[column];
      if (row < rows && column < outputs) store(dtype, y, row * outputs + column, sum);
    }
  }
}

// linear_w8a8: rows of int8 with a factor each, times int8 or int4 weights. Sums of a group are exact in 32 bits, and
// groups are added in order, so the bits are those of the reference. An item makes one element of y; a work-group 16
// outputs of 16 rows.
kernel void linear_w8a8(int dtype, int bits, long rows, long inputs, long outputs, long group_size,
                        const global char* q, const global float* factors, const global uchar* codes,
                        const global float* scales, const global char* zeros, const global float* bias,
                        global void* y) {
  const long output = (long)get_local_id(0) % kOutputs;
  const long blocks = (outputs + kOutputs - 1) / kOutputs;
  const long bundles = (rows + kSlices - 1) / kSlices;
  const long block_bytes = (inputs + 63) / 64 * 64 * kOutputs * bits / 8;
  for (long unit = (long)get_group_id(0); unit < blocks * bundles; unit += (long)get_num_groups(0)) {
    const long block = unit % blocks;
    const long row = unit / blocks * kSlices + (long)get_local_id(0) / kOutputs;
    const long column = block * kOutputs + output;
    if (row >= rows || column >= outputs) continue;
    const global uint* words = (const global uint*)(codes + block * block_bytes);
    const int offset = bits == 8 ? 128 : 8;
    float total = 0.0f;
    for (long first = 0; first < inputs; first += group_size) {
      const long at = first / group_size * blocks * kOutputs + column;
      const int zero = offset + (zeros != 0 ? (int)zeros[at] : 0);
      const long end = min(inputs, first + group_size);
      int sum = 0;
      for (long input = first; input < end; input += kStep) {
        uint found[kStep];
        read_codes(bits, words, output, input, found);
        for (int k = 0; k < kStep && input + k < end; ++k) {
          sum += ((int)found[k] - zero) * (int)q[row * inputs + input + k];
        }
      }
      total += scales[at] * (float)sum;
    }
    float value = total * factors[row];
    if (bias != 0) value += bias[column];
    store(dtype, y, row * outputs + column, value);
  }
}
