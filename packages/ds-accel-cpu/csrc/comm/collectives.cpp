#include "collectives.h"

#include <algorithm>

#include "copy.h"

namespace dsc {
namespace {

// Note [Sums in rank order]
// Each rank reduces its piece of a chunk over the ranks from the first to the last, wherever chunks and pieces begin.
// So an element has the same sum at every size, in every place and in every kind of reduction, on all ranks.

constexpr int64_t kWhole = 64 * 1024;     // reductions up to here: everyone reads everything, in one round
constexpr int64_t kPastCaches = 1 << 20;  // outputs from here on are written past the caches

// Rounds a rank shows before it takes the first: as many as there are slots, so that a rank that is not scheduled for a
// while keeps the others waiting as seldom as can be.
int64_t most_ahead(Group& group) { return group.segment().shape().slots - 1; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t down_to_line(int64_t bytes) { return bytes / kLine * kLine; }

// Runs rounds [first, first + count) of a call: `fill(t, slot)` prepares what round t shows the others, `take(t)` uses
// what they show. Up to `ahead` rounds are shown before the first of them is taken.
template <typename Fill, typename Take>
void rounds(Group& group, int64_t from, int64_t count, int64_t ahead, const Fill& fill, const Take& take) {
  const uint32_t first = group.round();
  int64_t filled = from;
  for (int64_t t = from; t < count; ++t) {
    for (; filled < std::min(count, t + 1 + ahead); ++filled) {
      const uint32_t round = first + static_cast<uint32_t>(filled);
      fill(filled, group.acquire(round));
      group.publish(round);
    }
    take(t, first + static_cast<uint32_t>(t));
  }
}

// Calls body(peer) for the others, beginning with the next rank so that not all read from the same one at once.
template <typename Body>
void each_peer(const Group& group, const Body& body) {
  for (int32_t i = 1; i < group.ranks(); ++i) body((group.rank() + i) % group.ranks());
}

// Number of the piece for `to` in a slot of `from`, which holds none for `from` itself.
int32_t piece_of(int32_t from, int32_t to) { return to < from ? to : to - 1; }

void copy_result(char* to, const char* from, int64_t bytes, int64_t total) {
  total >= kPastCaches ? copy_past_caches(to, nullptr, from, bytes) : copy(to, from, bytes);
}

// Into a slot; see Note [Past the caches].
void show(char* slot, const char* from, int64_t bytes) { copy_past_caches(slot, nullptr, from, bytes); }

void barrier(Group& group) {
  rounds(
      group, 0, 1, 0, [](int64_t, char*) {},
      [&](int64_t, uint32_t round) { each_peer(group, [&](int32_t peer) { group.arrive(peer, round); }); });
  group.next_round();
}

void all_gather(Group& group, const Call& call) {
  const int64_t room = group.segment().shape().slot_bytes;
  const int64_t count = std::max<int64_t>(1, ceil_div(call.bytes, room));
  const int64_t total = call.bytes * group.ranks();
  auto size = [&](int64_t t) { return std::min(room, call.bytes - t * room); };
  rounds(
      group, 0, count, most_ahead(group),
      [&](int64_t t, char* slot) {
        const char* const from = call.in[0] + t * room;
        char* const own = call.out[static_cast<size_t>(group.rank())] + t * room;
        const bool at_once = own != from && total >= kPastCaches;
        copy_past_caches(slot, at_once ? own : nullptr, from, size(t));
        if (own != from && !at_once) copy(own, from, size(t));
      },
      [&](int64_t t, uint32_t round) {
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          copy_result(call.out[static_cast<size_t>(peer)] + t * room, group.slot(peer, round), size(t), total);
          group.consumed(peer, round);
        });
      });
  group.next_round(static_cast<uint32_t>(count));
}

void broadcast(Group& group, const Call& call) {
  const int64_t room = group.segment().shape().slot_bytes;
  const int64_t count = std::max<int64_t>(1, ceil_div(call.bytes, room));
  const uint32_t end = group.round() + static_cast<uint32_t>(count);
  const bool is_root = group.rank() == call.root;
  auto size = [&](int64_t t) { return std::min(room, call.bytes - t * room); };
  rounds(
      group, 0, is_root ? count : 1, most_ahead(group),
      [&](int64_t t, char* slot) {
        if (is_root) show(slot, call.in[0] + t * room, size(t));
      },
      [&](int64_t t, uint32_t round) {
        if (t > 0) return;
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          if (peer != call.root) group.skip(peer, end);
        });
      });
  if (is_root) {
    copy(call.out[0], call.in[0], call.bytes);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      const uint32_t round = group.round() + static_cast<uint32_t>(t);
      group.arrive(call.root, round);
      copy_result(call.out[0] + t * room, group.slot(call.root, round), size(t), call.bytes);
      group.consumed(call.root, round);
    }
  }
  group.next_round(static_cast<uint32_t>(count));
}

void gather(Group& group, const Call& call) {
  const int64_t room = group.segment().shape().slot_bytes;
  const int64_t count = std::max<int64_t>(1, ceil_div(call.bytes, room));
  const uint32_t end = group.round() + static_cast<uint32_t>(count);
  const bool is_root = group.rank() == call.root;
  auto size = [&](int64_t t) { return std::min(room, call.bytes - t * room); };
  rounds(
      group, 0, count, most_ahead(group),
      [&](int64_t t, char* slot) {
        if (!is_root) show(slot, call.in[0] + t * room, size(t));
      },
      [&](int64_t t, uint32_t round) {
        if (!is_root && t > 0) return;
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          if (!is_root) {
            group.skip(peer, end);
            return;
          }
          char* const to = call.out[static_cast<size_t>(peer)] + t * room;
          copy_result(to, group.slot(peer, round), size(t), call.bytes * group.ranks());
          group.consumed(peer, round);
        });
      });
  if (is_root) copy(call.out[static_cast<size_t>(group.rank())], call.in[0], call.bytes);
  group.next_round(static_cast<uint32_t>(count));
}

void scatter(Group& group, const Call& call) {
  const int64_t room = down_to_line(group.segment().shape().slot_bytes / (group.ranks() - 1));
  const int64_t count = std::max<int64_t>(1, ceil_div(call.bytes, room));
  const uint32_t end = group.round() + static_cast<uint32_t>(count);
  const bool is_root = group.rank() == call.root;
  auto size = [&](int64_t t) { return std::min(room, call.bytes - t * room); };
  rounds(
      group, 0, is_root ? count : 1, most_ahead(group),
      [&](int64_t t, char* slot) {
        if (!is_root) return;
        each_peer(group, [&](int32_t peer) {
          show(slot + piece_of(call.root, peer) * room, call.in[static_cast<size_t>(peer)] + t * room, size(t));
        });
      },
      [&](int64_t t, uint32_t round) {
        if (t > 0) return;
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          if (peer != call.root) group.skip(peer, end);
        });
      });
  if (is_root) {
    copy(call.out[0], call.in[static_cast<size_t>(group.rank())], call.bytes);
  } else {
    for (int64_t t = 0; t < count; ++t) {
      const uint32_t round = group.round() + static_cast<uint32_t>(t);
      group.arrive(call.root, round);
      const char* const from = group.slot(call.root, round) + piece_of(call.root, group.rank()) * room;
      copy_result(call.out[0] + t * room, from, size(t), call.bytes);
      group.consumed(call.root, round);
    }
  }
  group.next_round(static_cast<uint32_t>(count));
}

void reduce_scatter(Group& group, const Call& call) {
  const int32_t me = group.rank();
  const int64_t item = kDtypes[call.dtype].item;
  const int64_t room = down_to_line(group.segment().shape().slot_bytes / (group.ranks() - 1));
  const int64_t count = std::max<int64_t>(1, ceil_div(call.bytes, room));
  auto size = [&](int64_t t) { return std::min(room, call.bytes - t * room); };
  std::vector<const void*> inputs(static_cast<size_t>(group.ranks()));
  rounds(
      group, 0, count, most_ahead(group),
      [&](int64_t t, char* slot) {
        each_peer(group, [&](int32_t peer) {
          show(slot + piece_of(me, peer) * room, call.in[static_cast<size_t>(peer)] + t * room, size(t));
        });
      },
      [&](int64_t t, uint32_t round) {
        inputs[static_cast<size_t>(me)] = call.in[static_cast<size_t>(me)] + t * room;
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          inputs[static_cast<size_t>(peer)] = group.slot(peer, round) + piece_of(peer, me) * room;
        });
        const bool is_long = call.bytes >= kPastCaches;
        group.reduce(inputs.data(), size(t) / item, call.out[0] + t * room, nullptr, is_long);
        each_peer(group, [&](int32_t peer) { group.consumed(peer, round); });
      });
  group.next_round(static_cast<uint32_t>(count));
}

// A reduction small enough that those who want the result read all of everyone.
void reduce_whole(Group& group, const Call& call, bool wants) {
  std::vector<const void*> inputs(static_cast<size_t>(group.ranks()));
  rounds(
      group, 0, 1, 0, [&](int64_t, char* slot) { show(slot, call.in[0], call.bytes); },
      [&](int64_t, uint32_t round) {
        inputs[static_cast<size_t>(group.rank())] = call.in[0];
        each_peer(group, [&](int32_t peer) {
          group.arrive(peer, round);
          inputs[static_cast<size_t>(peer)] = group.slot(peer, round);
        });
        if (wants) group.reduce(inputs.data(), call.bytes / kDtypes[call.dtype].item, call.out[0], nullptr, false);
      });
  group.next_round();
}

// Pieces of one chunk of a reduction: rank r reduces bytes [begin(r), begin(r + 1)) of the chunk.
struct Pieces {
  int64_t chunk;  // bytes of the chunk
  int64_t piece;  // bytes of every piece but the last ones
  int64_t begin(int32_t rank) const { return std::min(chunk, rank * piece); }
  int64_t size(int32_t rank) const { return begin(rank + 1) - begin(rank); }
};

// Reduce-scatter and all-gather in one: round t shows the pieces of chunk t, and the reduced piece of chunk t - delay.
// A piece is reduced straight into the slot of the round that will show it, which is why that round is not shown yet.
void reduce_chunks(Group& group, const Call& call, bool wants) {
  const int32_t me = group.rank();
  const int64_t item = kDtypes[call.dtype].item;
  const int64_t room = down_to_line(group.segment().shape().slot_bytes / group.ranks());
  const int64_t chunk = room * group.ranks();
  const int64_t chunks = ceil_div(call.bytes, chunk);
  const int64_t delay = std::min(chunks, most_ahead(group));
  const int64_t result = room * (group.ranks() - 1);  // place of the reduced piece in a slot
  auto pieces = [&](int64_t t) {
    const int64_t bytes = std::min(chunk, call.bytes - t * chunk);
    return Pieces{bytes, std::min(room, ceil_div(ceil_div(bytes, group.ranks()), kLine) * kLine)};
  };
  std::vector<const void*> inputs(static_cast<size_t>(group.ranks()));
  auto fill = [&](int64_t t, char* slot) {
    if (t >= chunks) return;
    const Pieces now = pieces(t);
    each_peer(group, [&](int32_t peer) {
      show(slot + piece_of(me, peer) * room, call.in[0] + t * chunk + now.begin(peer), now.size(peer));
    });
  };
  auto reduce = [&](int64_t t, uint32_t round) {
    const Pieces now = pieces(t);
    const int64_t at = t * chunk + now.begin(me);
    inputs[static_cast<size_t>(me)] = call.in[0] + at;
    char* const shown = group.acquire(round + static_cast<uint32_t>(delay)) + result;
    char* const out = wants ? call.out[0] + at : shown;
    group.reduce(inputs.data(), now.size(me) / item, out, wants ? shown : nullptr, !wants);
  };
  auto take = [&](int64_t t, uint32_t round) {
    each_peer(group, [&](int32_t peer) {
      group.arrive(peer, round);
      inputs[static_cast<size_t>(peer)] = group.slot(peer, round) + piece_of(peer, me) * room;
    });
    if (t < chunks) reduce(t, round);
    const int64_t shown = t - delay;  // the chunk whose reduced pieces are there
    each_peer(group, [&](int32_t peer) {
      if (wants && shown >= 0) {
        const Pieces then = pieces(shown);
        char* const to = call.out[0] + shown * chunk + then.begin(peer);
        copy_result(to, group.slot(peer, round) + result, then.size(peer), call.bytes);
      }
      group.consumed(peer, round);
    });
  };
  rounds(group, 0, chunks + delay, delay - 1, fill, take);
  group.next_round(static_cast<uint32_t>(chunks + delay));
}

void all_reduce(Group& group, const Call& call) {
  const bool wants = call.root < 0 || call.root == group.rank();
  const int64_t whole = std::min(kWhole, group.segment().shape().slot_bytes);
  call.bytes <= whole ? reduce_whole(group, call, wants) : reduce_chunks(group, call, wants);
}

// Round 0 also shows how many bytes go to whom, so everyone knows how many rounds there are, and whether each receiver
// expects what its sender sends.
void all_to_all(Group& group, const Call& call) {
  const int32_t me = group.rank();
  const int32_t n = group.ranks();
  const int64_t base = ceil_div(n * 8, kLine) * kLine;
  const int64_t room = down_to_line((group.segment().shape().slot_bytes - base) / (n - 1));
  const uint32_t first = group.round();
  int64_t count = 1;
  auto part = [room](int64_t bytes, int64_t t) { return std::max<int64_t>(0, std::min(room, bytes - t * room)); };
  auto fill = [&](int64_t t, char* slot) {
    if (t == 0) copy(slot, call.in_bytes.data(), n * 8);
    each_peer(group, [&](int32_t peer) {
      const size_t to = static_cast<size_t>(peer);
      show(slot + base + piece_of(me, peer) * room, call.in[to] + t * room, part(call.in_bytes[to], t));
    });
  };
  auto take = [&](int64_t t, uint32_t round) {
    each_peer(group, [&](int32_t peer) {
      const size_t from = static_cast<size_t>(peer);
      const int64_t bytes = part(call.out_bytes[from], t);
      if (bytes > 0) {
        group.arrive(peer, round);
        const char* const shown = group.slot(peer, round) + base + piece_of(peer, me) * room;
        copy_result(call.out[from] + t * room, shown, bytes, bytes * n);
      }
      group.consumed(peer, round);
    });
  };
  auto meet = [&](int64_t, uint32_t round) {
    auto agree = [&](int32_t peer, const int64_t* shown) {
      for (int32_t to = 0; to < n; ++to) {
        if (to != peer) count = std::max(count, ceil_div(shown[to], room));
      }
      const int64_t expected = call.out_bytes[static_cast<size_t>(peer)];
      if (shown[me] != expected) {
        group.fail(group.name(peer) + " sends " + std::to_string(shown[me]) + " bytes to " + group.name(me) +
                   " in an all_to_all, where " + std::to_string(expected) +
                   " are expected: the split sizes of the two do not match");
      }
    };
    agree(me, call.in_bytes.data());
    each_peer(group, [&](int32_t peer) {
      group.arrive(peer, round);
      agree(peer, reinterpret_cast<const int64_t*>(group.slot(peer, round)));
    });
    take(0, first);
  };
  rounds(group, 0, 1, 0, fill, meet);
  copy(call.out[static_cast<size_t>(me)], call.in[static_cast<size_t>(me)], call.in_bytes[static_cast<size_t>(me)]);
  rounds(group, 1, count, most_ahead(group), fill, take);
  group.next_round(static_cast<uint32_t>(count));
}

// One rank: copies only.
void alone(Group& group, const Call& call) {
  const bool is_list = call.kind == kAllToAll;
  if (call.kind == kBarrier) return;
  const int64_t bytes = is_list ? call.in_bytes[0] : call.bytes;
  if (is_list && bytes != call.out_bytes[0]) {
    group.fail("an all_to_all sends " + std::to_string(bytes) + " bytes to its only rank, where " +
               std::to_string(call.out_bytes[0]) + " are expected");
  }
  copy(call.out[0], call.in[0], bytes);
}

void dispatch(Group& group, const Call& call) {
  if (group.ranks() == 1) return alone(group, call);
  switch (call.kind) {
    case kAllReduce:
    case kReduce:
      return all_reduce(group, call);
    case kReduceScatter:
      return reduce_scatter(group, call);
    case kAllGather:
      return all_gather(group, call);
    case kBroadcast:
      return broadcast(group, call);
    case kGather:
      return gather(group, call);
    case kScatter:
      return scatter(group, call);
    case kAllToAll:
      return all_to_all(group, call);
    default:
      return barrier(group);
  }
}

}  // namespace

void run(Group& group, const Call& call, const Patience& patience) {
  group.check();
  group.open(call, patience);
  try {
    dispatch(group, call);
  } catch (const Broken&) {
    throw;
  } catch (...) {  // a signal: half of a collective cannot be taken back
    group.note_failure(group.name(group.rank()) + " was interrupted in a collective");
    throw;
  }
  group.close();
}

}  // namespace dsc
