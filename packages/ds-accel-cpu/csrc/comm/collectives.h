// The collectives, as rounds of a `Group`.
#pragma once

#include "group.h"

namespace dsc {

// Carries out one call; returns when this rank's part is done and its outputs are there. Addresses in the call:
//   all_reduce, reduce, broadcast  in[0], out[0]: `bytes`; may be the same
//   all_gather, gather             in[0]: `bytes`; out[i]: `bytes` from rank i (gather: at the root)
//   reduce_scatter, scatter        in[i]: `bytes` for rank i (scatter: at the root); out[0]: `bytes`, may be in[rank]
//   all_to_all                     in[i]: in_bytes[i] for rank i; out[i]: out_bytes[i] from rank i
// Throws Broken, or what the patience throws; the group is broken for all ranks then.
void run(Group& group, const Call& call, const Patience& patience);

}  // namespace dsc
