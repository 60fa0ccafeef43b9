// Rows moved by index: gather_rows, replace_rows, scatter_rows, combine_rows and their gradients.
//
// Note [An index out of range on a device]
// The host must not wait to find out. So check_index runs first, and sets a flag in memory that the host reads later
// (csrc/host/indices.h says when); the other kernels leave such an index alone, and what it would have given is NaN.
#include "common.h"

// flag[0] = 1 if a value names no row and is not `other`, or, where `length` is not 0, runs of that many do not rise.
kernel void check_index(const global long* index, long count, long rows, long other, long length, global int* flag) {
  for (long i = item(); i < count; i += items()) {
    bool good = exists(index[i], rows) || index[i] == other;
    if (length != 0 && i % length != 0) good = good && index[i - 1] < index[i];
    if (!good) flag[0] = 1;
  }
}

// Copies a row by the whole work-group, in the widest words that both addresses and the length allow.
static inline void copy_row(Target to, Source from, long bytes) {
  const ulong together = (ulong)to | (ulong)from | (ulong)bytes;
  const long here = (long)get_local_id(0);
  if (together % 16ul == 0ul) {
    for (long i = here; i < bytes / 16; i += kGroup) ((global uint4*)to)[i] = ((const global uint4*)from)[i];
  } else if (together % 4ul == 0ul) {
    for (long i = here; i < bytes / 4; i += kGroup) ((global uint*)to)[i] = ((const global uint*)from)[i];
  } else {
    for (long i = here; i < bytes; i += kGroup) ((global uchar*)to)[i] = ((const global uchar*)from)[i];
  }
}

static inline void fill_bytes(Target to, long bytes, uchar value) {
  for (long i = (long)get_local_id(0); i < bytes; i += kGroup) ((global uchar*)to)[i] = value;
}

static inline Source row_at(Source base, long row, long bytes) { return (const global uchar*)base + row * bytes; }
static inline Target row_at(Target base, long row, long bytes) { return (global uchar*)base + row * bytes; }

kernel void gather_rows(long batch, long rows, long taken, long row_bytes, const global void* x,
                        const global long* index, global void* y) {
  for (long at = (long)get_group_id(0); at < batch * taken; at += (long)get_num_groups(0)) {
    const long row = index[at];
    if (exists(row, rows)) {
      copy_row(row_at(y, at, row_bytes), row_at(x, at / taken * rows + row, row_bytes), row_bytes);
    } else {
      fill_bytes(row_at(y, at, row_bytes), row_bytes, 0xff);
    }
  }
}

// The place of `row` among rising values, or the first behind it.
static inline long place_of(const global long* values, long count, long row) {
  long low = 0;
  for (long high = count; low < high;) {
    const long middle = low + (high - low) / 2;
    if (values[middle] < row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

kernel void replace_rows(long batch, long rows, long taken, long row_bytes, const global void* base,
                         const global void* x, const global long* index, global void* y) {
  for (long at = (long)get_group_id(0); at < batch * rows; at += (long)get_num_groups(0)) {
    const long b = at / rows;
    const long place = place_of(index + b * taken, taken, at % rows);
    const bool replaced = place < taken && index[b * taken + place] == at % rows;
    if (!replaced) {
      copy_row(row_at(y, at, row_bytes), row_at(base, at, row_bytes), row_bytes);
    } else if (x != 0) {
      copy_row(row_at(y, at, row_bytes), row_at(x, b * taken + place, row_bytes), row_bytes);
    } else {
      fill_bytes(row_at(y, at, row_bytes), row_bytes, 0);
    }
  }
}

// Who adds to a row, in rising order: entries[starts[row] .. starts[row + 1]) for rows of all runs. A counting sort by
// one work-group for each run of `length` values, so that the order is the same every time. `ranks` is scratch.
kernel void invert_index(long runs, long length, long rows, const global long* index, global long* starts,
                         global long* ranks, global long* entries) {
  local long chunk[kGroup];
  local long carried;
  const long here = (long)get_local_id(0);
  for (long run = (long)get_group_id(0); run < runs; run += (long)get_num_groups(0)) {
    const global long* values = index + run * length;
    global long* begin = starts + run * rows;
    global long* rank = ranks + run * length;
    for (long row = here; row < rows; row += kGroup) begin[row] = 0;
    for (long first = 0; first < length; first += kGroup) {  // how many of the same row came before
      const long value = first + here < length && exists(values[first + here], rows) ? values[first + here] : -1;
      chunk[here] = value;
      barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
      long before = 0;
      long behind = 0;
      for (long i = 0; i < here; ++i) before += chunk[i] == value ? 1 : 0;
      for (long i = here + 1; i < kGroup; ++i) behind += chunk[i] == value ? 1 : 0;
      if (value >= 0) before += begin[value];
      barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
      if (value >= 0) {
        rank[first + here] = before;
        if (behind == 0) begin[value] = before + 1;
      }
    }
    if (here == 0) carried = 0;
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    for (long first = 0; first < rows; first += kGroup) {  // from counts to the place of each row's first entry
      const long count = first + here < rows ? begin[first + here] : 0;
      chunk[here] = count;
      barrier(CLK_LOCAL_MEM_FENCE);
      for (long reach = 1; reach < kGroup; reach *= 2) {
        const long more = here >= reach ? chunk[here - reach] : 0;
        barrier(CLK_LOCAL_MEM_FENCE);
        chunk[here] += more;
        barrier(CLK_LOCAL_MEM_FENCE);
      }
      if (first + here < rows) begin[first + here] = run * length + carried + chunk[here] - count;
      barrier(CLK_LOCAL_MEM_FENCE);
      if (here == kGroup - 1) carried += chunk[here];
      barrier(CLK_LOCAL_MEM_FENCE);
    }
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
    for (long i = here; i < length; i += kGroup) {
      if (exists(values[i], rows)) entries[begin[values[i]] + rank[i]] = run * length + i;
    }
    // The entries of a run need not be as many as its values, so each run says where its last row ends.
    if (here == 0) starts[runs * rows + run] = run * length + carried;
    barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);
  }
}

// Row r of y = sum, in order, of weights[e] * x[e / fold] over the entries e of r; without weights they are 1.
kernel void sum_sources(int dtype, int weight_dtype, long runs, long rows, long fold, long columns,
                        const global void* x, const global long* starts, const global long* entries,
                        const global void* weights, global void* y) {
  for (long row = (long)get_group_id(0); row < runs * rows; row += (long)get_num_groups(0)) {
    const long begin = starts[row];
    const long end = (row + 1) % rows == 0 ? starts[runs * rows + row / rows] : starts[row + 1];
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      float sum = 0.0f;
      for (long at = begin; at < end; ++at) {
        const long entry = entries[at];
        const float weight = weights != 0 ? load(weight_dtype, weights, entry) : 1.0f;
        sum += weight * load(dtype, x, entry / fold * columns + j);
      }
      store(dtype, y, row * columns + j, sum);
    }
  }
}

kernel void scatter_rows_backward(int dtype, int weight_dtype, long batch, long rows, long taken, long columns,
                                  const global void* dy, const global void* x, const global long* index,
                                  const global void* weights, global void* dx, global void* dweights) {
  local float scratch[kGroup];
  for (long at = (long)get_group_id(0); at < batch * taken; at += (long)get_num_groups(0)) {
    const bool known = exists(index[at], rows);
    const long first = known ? (at / taken * rows + index[at]) * columns : 0;
    const float weight = load(weight_dtype, weights, at);
    float product = 0.0f;
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      const float slope = known ? load(dtype, dy, first + j) : kBad;
      product += slope * load(dtype, x, at * columns + j);
      store(dtype, dx, at * columns + j, weight * slope);
    }
    product = group_sum(product, scratch);
    if (get_local_id(0) == 0) store(weight_dtype, dweights, at, product);
  }
}

kernel void combine_rows(int dtype, int weight_dtype, long rows, long tokens, long slots, long columns,
                         const global void* x, const global long* index, const global void* weights, global void* y) {
  for (long token = (long)get_group_id(0); token < tokens; token += (long)get_num_groups(0)) {
    for (long j = (long)get_local_id(0); j < columns; j += kGroup) {
      float sum = 0.0f;
      for (long entry = token * slots; entry < (token + 1) * slots; ++entry) {
        const long row = index[entry];
        if (row == -1) continue;
        const float value = exists(row, rows) ? load(dtype, x, row * columns + j) : kBad;
        sum += load(weight_dtype, weights, entry) * value;
      }
      store(dtype, y, token * columns + j, sum);
    }
  }
}

kernel void combine_rows_weights(int dtype, int weight_dtype, long rows, long count, long slots, long columns,
                                 const global void* dy, const global void* x, const global long* index,
                                 global void* dweights) {
  local float scratch[kGroup];
  for (long entry = (long)get_group_id(0); entry < count; entry += (long)get_num_groups(0)) {
    const long row = index[entry];
    const bool known = exists(row, rows);
    float product = known || row == -1 ? 0.0f : kBad;
    for (long j = (long)get_local_id(0); known && j < columns; j += kGroup) {
      product += load(dtype, dy, entry / slots * columns + j) * load(dtype, x, row * columns + j);
    }
    product = group_sum(product, scratch);
    if (get_local_id(0) == 0) store(weight_dtype, dweights, entry, product);
  }
}
