// Who adds to a row: the inverse of an index, each row's sources in rising order; and the sums over them.
#pragma once

#include "tokens/row_grid.h"

namespace dsk {

// Note [Sums in the order of the sources]
// Several sources may add to one row. Added by float atomics they would come in any order; so the index is inverted
// first. A row's sources are counted, get a place in a list, and go there as they come, all by integer atomics; then
// each source counts those of its row that are before it, and moves to that rank. Where the list of a row lies depends
// on the run; what it holds does not, and each row adds it up by one thread an element.

struct Index {
  const int64_t* values;  // [groups, length]; group g names rows [g * rows, (g + 1) * rows)
  int64_t groups;
  int64_t length;
  int64_t rows;
  int64_t divisor;  // entries that share a source row: entry e adds row e / divisor
  bool has_holes;   // -1 adds nothing
};

// What adds to a row: an entry of the index, and the row it adds.
struct Source {
  int64_t entry;
  int64_t row;
};

using Counter = unsigned long long;  // what 64-bit atomics take

// The lists, in the workspace.
struct Sources {
  Source* list;
  int64_t* as_they_came;  // entries
  Counter* start;         // [rows of all groups]
  Counter* end;           // [rows of all groups]; before that counts, and where the next source goes
  Counter* used;          // entries of all lists so far
};

uint64_t sources_bytes(int64_t rows, int64_t entries);

// Fills the lists for an index. `workspace` has sources_bytes(...) bytes.
int32_t find_sources(const Index& index, void* workspace, const ds_exec* exec, Sources* sources);

// out[row] = sum over the row's sources of weights[entry] * x[source row], in order, in float32.
struct SourceSums {
  int32_t dtype;  // of x and out
  int32_t weight_dtype;
  int64_t rows;
  int64_t columns;
  const void* x;
  const void* weights;  // or NULL for 1
  void* out;
};

int32_t add_sources(const SourceSums& sums, const Sources& sources, const ds_exec* exec);

}  // namespace dsk
