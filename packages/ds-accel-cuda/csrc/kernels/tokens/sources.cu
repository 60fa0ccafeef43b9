// The inverse of an index, and sums over it: see sources.h.
#include "tokens/sources.h"

namespace dsk {
namespace {

// The row over all groups that an entry names, or -1.
DSK_DEVICE int64_t row_of(const Index& index, int64_t entry) {
  const int64_t value = index.values[entry];
  return is_row(value, index.rows) ? entry / index.length * index.rows + value : -1;
}

__global__ void __launch_bounds__(kThreads) count(Index index, Sources s) {
  DSK_GRID_STRIDE(entry, index.groups * index.length) {
    const int64_t row = row_of(index, entry);
    if (row >= 0) {
      atomicAdd(s.end + row, Counter{1});
    } else if (!index.has_holes || index.values[entry] != -1) {
      report_bad_index();
    }
  }
}

// Gives each row its part of the list. Blocks take theirs as they come, rows of a block too.
__global__ void __launch_bounds__(kThreads) place(Sources s, int64_t rows) {
  DSK_SHARED(Counter, taken, );
  DSK_SHARED(Counter, base, );
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t first = blockIdx.x * static_cast<int64_t>(blockDim.x); first < rows; first += step) {
    const int64_t row = first + threadIdx.x;
    if (threadIdx.x == 0) taken = 0;
    __syncthreads();
    const Counter here = row < rows ? s.end[row] : 0;
    const Counter before = here > 0 ? atomicAdd(&taken, here) : 0;
    __syncthreads();
    if (threadIdx.x == 0) base = atomicAdd(s.used, taken);
    __syncthreads();
    if (row < rows) {
      s.start[row] = base + before;
      s.end[row] = base + before;
    }
  }
}

__global__ void __launch_bounds__(kThreads) fill(Index index, Sources s) {
  DSK_GRID_STRIDE(entry, index.groups * index.length) {
    const int64_t row = row_of(index, entry);
    if (row >= 0) s.as_they_came[atomicAdd(s.end + row, Counter{1})] = entry;
  }
}

__global__ void __launch_bounds__(kThreads) sort(Index index, Sources s) {
  DSK_GRID_STRIDE(entry, index.groups * index.length) {
    const int64_t row = row_of(index, entry);
    if (row < 0) continue;
    const Counter start = s.start[row];
    const Counter end = s.end[row];
    Counter rank = 0;
    for (Counter i = start; i < end; ++i) rank += s.as_they_came[i] < entry ? 1 : 0;
    s.list[start + rank] = {entry, entry / index.divisor};
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) add_rows(SourceSums a, Sources s, int lanes) {
  const T* x = static_cast<const T*>(a.x);
  T* out = static_cast<T*>(a.out);
  const int64_t eights = ceil_div(a.columns, kVector);
  for_my_rows(a.rows, lanes, [&](int64_t row, int64_t first, int64_t step) {
    const Source* const begin = s.list + s.start[row];
    const Source* const end = s.list + s.end[row];
    for (int64_t eight = first; eight < eights; eight += step) {
      const int64_t column = eight * kVector;
      float sum[kVector] = {};
      for (const Source* source = begin; source != end; ++source) {
        const float weight = a.weights != nullptr ? float_at(a.weight_dtype, a.weights, source->entry) : 1.0f;
        float values[kVector];
        load8(x + source->row * a.columns + column, a.columns - column, values);
#pragma unroll
        for (int j = 0; j < kVector; ++j) sum[j] += weight * values[j];
      }
      store8(out + row * a.columns + column, a.columns - column, sum);
    }
  });
}

Shape shape_for(int64_t count) { return team_shape(count, 1); }

}  // namespace

uint64_t sources_bytes(int64_t rows, int64_t entries) {
  return (sizeof(Source) + sizeof(int64_t)) * static_cast<uint64_t>(max64(entries, 0)) +
         sizeof(Counter) * (2 * static_cast<uint64_t>(max64(rows, 0)) + 1);
}

int32_t find_sources(const Index& index, void* workspace, const ds_exec* exec, Sources* sources) {
  const int64_t rows = index.groups * index.rows;
  const int64_t entries = index.groups * index.length;
  Sources s = {};
  s.list = static_cast<Source*>(workspace);
  s.as_they_came = reinterpret_cast<int64_t*>(s.list + entries);
  s.start = reinterpret_cast<Counter*>(s.as_they_came + entries);
  s.end = s.start + rows;
  s.used = s.end + rows;
  *sources = s;
  int32_t status = set_bytes(exec, s.end, 0, static_cast<size_t>(rows + 1) * sizeof(Counter));
  if (status == DS_OK) status = launch(exec, shape_for(entries), count, index, s);
  if (status == DS_OK) status = launch(exec, shape_for(rows), place, s, rows);
  if (status == DS_OK) status = launch(exec, shape_for(entries), fill, index, s);
  if (status == DS_OK) status = launch(exec, shape_for(entries), sort, index, s);
  return status;
}

int32_t add_sources(const SourceSums& sums, const Sources& sources, const ds_exec* exec) {
  if (sums.rows == 0 || sums.columns == 0) return DS_OK;
  const RowGrid grid = row_grid(sums.rows, ceil_div(sums.columns, kVector));
  return with_float_type(sums.dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return launch(exec, grid.shape, add_rows<T>, sums, sources, grid.lanes);
  });
}

}  // namespace dsk
