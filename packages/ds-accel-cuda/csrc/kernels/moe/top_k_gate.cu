// top_k_gate: a team of lanes for each token; expert e belongs to lane e % 32.
//
// Note [Choosing in order]
// What experts are compared by is made a number whose upper half is ordered as the float is and whose lower half falls
// with the expert, so that no two are equal and the largest is the best expert, of equal ones the first. The next one
// is the largest below it, whatever was chosen before: nothing is marked, and nothing is sorted. 0 is an expert that is
// out.
#include "gpu/elementary.h"
#include "gpu/gpu.h"
#include "moe/lanes.h"
#include "moe/rows.h"

namespace dsk {
using namespace moe;
namespace {

using Key = unsigned long long;

constexpr int kKept = 8;          // experts of a lane whose scores stay in registers
constexpr int kGroupsOfLane = 2;  // DS_MOST_EXPERT_GROUPS of them in a team

// An integer above 0 that is ordered as the float is; NaN and what is below every number are the lowest one.
DSK_DEVICE uint32_t ordered(float value) {
  const float lowest = -3.402823466e38f;
  const float known = (value > lowest ? value : lowest) + 0.0f;  // the sum makes one zero of two
  const uint32_t bits = bits_of(known);
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
DSK_DEVICE float of_ordered(uint32_t key) { return float_of(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu)); }

DSK_DEVICE Key key_of(uint32_t ordered_value, int number) {
  return ordered_value == 0 ? 0 : static_cast<Key>(ordered_value) << 32 | (0xffffffffu - static_cast<uint32_t>(number));
}
DSK_DEVICE int number_of(Key key) { return static_cast<int>(0xffffffffu - static_cast<uint32_t>(key)); }

// The experts of a lane: kept in registers if kSlots > 0, else read again.
template <typename T, int kSlots>
class Experts {
 public:
  DSK_DEVICE Experts(const ds_top_k_gate_args& a, int64_t token)
      : a_(a),
        logits_(static_cast<const T*>(a.logits) + token * a.experts),
        scores_(a.scores + token * a.experts),
        by_logit_(a.bias == nullptr && (a.groups == 1 || a.group_score == DS_GATE_GROUP_MAX)) {}

  // Scores of all experts, written, and what they are compared by.
  DSK_DEVICE void score(bool active) {
    float x[kArray] = {};
    load(active, x);
    float largest = -HUGE_VALF;
    float total = 0.0f;
    if (a_.score == DS_GATE_SOFTMAX) {
      each(active, [&](int slot, int e) {
        const float value = kSlots > 0 ? x[slot] : to_float(logits_[e]);
        largest = value > largest ? value : largest;
      });
      largest = team_max(largest);
      each(active, [&](int slot, int e) { total += exp_of((kSlots > 0 ? x[slot] : to_float(logits_[e])) - largest); });
      total = team_sum(total);
    }
    each(active, [&](int slot, int e) {
      const float value = kSlots > 0 ? x[slot] : to_float(logits_[e]);
      const float result =
          a_.score == DS_GATE_SOFTMAX ? exp_of(value - largest) / total : 1.0f / (1.0f + exp_of(-value));
      scores_[e] = result;
      if constexpr (kSlots > 0) {
        score_[slot] = result;
        order_[slot] = compared_by(value, result, e);
      }
    });
  }

  // The largest key below `limit` among experts from first to end.
  DSK_DEVICE Key best(bool active, Key limit, int first, int end) const {
    Key found = 0;
    each(active, [&](int slot, int e) {
      if (e < first || e >= end) return;
      const Key key = key_of(order(slot, e), e);
      if (key < limit && key > found) found = key;
    });
    return team_max(found);
  }

  // Experts of groups without a bit are out.
  DSK_DEVICE void keep(bool active, uint64_t groups) {
    groups_ = groups;
    if constexpr (kSlots > 0) {
      each(active, [&](int slot, int e) {
        if (!is_kept(e)) order_[slot] = 0;
      });
    }
  }

  DSK_DEVICE float score_of(int expert) const {
    float mine = 0.0f;
    if constexpr (kSlots > 0) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        if (team_rank() + slot * kTeam == expert) mine = score_[slot];
      }
    } else {
      if (expert % kTeam == team_rank()) mine = scores_[expert];
    }
    return team_shuffle(mine, expert % kTeam);
  }

 private:
  static constexpr int kArray = kSlots > 0 ? kSlots : 1;

  // body(slot, expert) for the experts of this lane.
  template <typename Body>
  DSK_DEVICE void each(bool active, const Body& body) const {
    const int experts = active ? static_cast<int>(a_.experts) : 0;
    if constexpr (kSlots > 0) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        const int e = team_rank() + slot * kTeam;
        if (e < experts) body(slot, e);
      }
    } else {
      for (int e = team_rank(); e < experts; e += kTeam) body(0, e);
    }
  }

  DSK_DEVICE void load(bool active, float (&x)[kArray]) const {
    if constexpr (kSlots > 0) {
      each(active, [&](int slot, int e) { x[slot] = to_float(logits_[e]); });
    }
  }

  DSK_DEVICE uint32_t compared_by(float logit, float score, int e) const {
    return ordered(by_logit_ ? logit : a_.bias == nullptr ? score : score + a_.bias[e]);
  }
  DSK_DEVICE uint32_t order(int slot, int e) const {
    if constexpr (kSlots > 0) return order_[slot];
    return is_kept(e) ? compared_by(to_float(logits_[e]), scores_[e], e) : 0;
  }
  DSK_DEVICE bool is_kept(int e) const {
    return a_.groups == 1 || (groups_ >> (e / (static_cast<int>(a_.experts) / a_.groups)) & 1) != 0;
  }

  const ds_top_k_gate_args& a_;
  const T* logits_;
  float* scores_;
  bool by_logit_;
  uint64_t groups_ = ~uint64_t{0};
  float score_[kArray] = {};
  uint32_t order_[kArray] = {};
};

// A bit for each group that is kept.
template <class Row>
DSK_DEVICE uint64_t kept_groups(const ds_top_k_gate_args& a, const Row& row, bool active) {
  const int size = static_cast<int>(a.experts) / a.groups;
  uint32_t mine[kGroupsOfLane] = {};
  for (int g = 0; g < a.groups; ++g) {
    const Key first = row.best(active, ~Key{0}, g * size, (g + 1) * size);
    uint32_t value = static_cast<uint32_t>(first >> 32);
    if (a.group_score == DS_GATE_GROUP_TOP2) {
      const Key second = row.best(active, first, g * size, (g + 1) * size);
      value = ordered(of_ordered(value) + of_ordered(static_cast<uint32_t>(second >> 32)));
    }
#pragma unroll
    for (int i = 0; i < kGroupsOfLane; ++i) {
      if (g == team_rank() + i * kTeam) mine[i] = value;
    }
  }
  uint64_t kept = 0;
  Key last = ~Key{0};
  for (int i = 0; i < a.groups_kept; ++i) {
    Key found = 0;
#pragma unroll
    for (int j = 0; j < kGroupsOfLane; ++j) {
      const Key key = key_of(mine[j], team_rank() + j * kTeam);
      if (key < last && key > found) found = key;
    }
    last = team_max(found);
    if (active) kept |= uint64_t{1} << number_of(last);
  }
  return kept;
}

template <typename T, int kSlots>
__global__ void __launch_bounds__(kThreads, 3) gate_kernel(ds_top_k_gate_args a) {
  for (int64_t base = 0; base < a.tokens; base += team_count()) {  // all teams of a block go round equally often
    const int64_t token = base + team_number();
    const bool active = token < a.tokens;
    Experts<T, kSlots> row(a, active ? token : 0);
    row.score(active);
    if (a.groups > 1) row.keep(active, kept_groups(a, row, active));
    float* const weights = a.weights + token * a.k;
    float total = 0.0f;
    Key last = ~Key{0};
    for (int64_t j = 0; j < a.k; ++j) {
      last = row.best(active, last, 0, static_cast<int>(a.experts));
      const int expert = active ? number_of(last) : 0;
      const float score = row.score_of(expert);
      total += score;
      if (active && j % kTeam == team_rank()) {
        a.chosen[token * a.k + j] = expert;
        weights[j] = a.renormalize != 0 ? score : score * a.scale;
      }
    }
    if (!active || a.renormalize == 0) continue;
    const float smallest = 1.17549435e-38f;
    total = total < smallest ? smallest : total;
    for (int64_t j = team_rank(); j < a.k; j += kTeam) weights[j] = weights[j] / total * a.scale;  // its own
  }
}

template <typename T>
int32_t run(const ds_top_k_gate_args& a, const ds_exec* exec) {
  const Shape shape = team_shape(a.tokens);
  if (a.experts <= 2 * kTeam) return launch(exec, shape, gate_kernel<T, 2>, a);
  if (a.experts <= kKept * kTeam) return launch(exec, shape, gate_kernel<T, kKept>, a);
  return launch(exec, shape, gate_kernel<T, 0>, a);
}

bool fits(const ds_top_k_gate_args& a) {
  if (a.tokens < 0 || a.experts < 1 || a.experts > DS_MOST_EXPERTS) return false;
  if (a.score != DS_GATE_SOFTMAX && a.score != DS_GATE_SIGMOID) return false;
  if (a.groups < 1 || a.groups > DS_MOST_EXPERT_GROUPS || a.experts % a.groups != 0) return false;
  if (a.groups_kept < 1 || a.groups_kept > a.groups) return false;
  const int64_t size = a.experts / a.groups;
  if (a.groups > 1 && a.group_score != DS_GATE_GROUP_MAX && (a.group_score != DS_GATE_GROUP_TOP2 || size < 2)) {
    return false;
  }
  return a.k >= 1 && a.k <= size * a.groups_kept;
}

}  // namespace

int32_t top_k_gate(const void* arguments, const ds_exec* exec) {
  const ds_top_k_gate_args* a = static_cast<const ds_top_k_gate_args*>(arguments);
  if (!is_valid(a, exec) || !fits(*a)) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t { return run<typename decltype(tag)::type>(*a, exec); });
}

}  // namespace dsk
