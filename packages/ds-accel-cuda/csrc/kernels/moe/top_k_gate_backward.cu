// top_k_gate_backward: a team of lanes for each token.
#include "gpu/gpu.h"
#include "moe/lanes.h"
#include "moe/rows.h"

namespace dsk {
using namespace moe;
namespace {

// What gradients of the weights of a token become: d of score of the chosen = dweight * factor - shift.
struct OfWeights {
  float factor;
  float shift;
  float dot;  // sum over the chosen of their gradient times their score
};

DSK_DEVICE bool is_there(const ds_top_k_gate_backward_args& a, int64_t expert) {
  return expert >= 0 && expert < a.experts;
}

DSK_DEVICE OfWeights of_weights(const ds_top_k_gate_backward_args& a, int64_t token, bool active) {
  const int64_t* chosen = a.chosen + token * a.k;
  const float* dweights = a.dweights + token * a.k;
  const float* scores = a.scores + token * a.experts;
  float total = 0.0f;
  float dot = 0.0f;
  for (int64_t j = team_rank(); active && j < a.k; j += kTeam) {
    if (!is_there(a, chosen[j])) continue;
    const float score = scores[chosen[j]];
    total += score;
    dot += dweights[j] * a.scale * score;
  }
  total = team_sum(total);
  dot = team_sum(dot);
  if (a.renormalize == 0) return {a.scale, 0.0f, dot};
  const float smallest = 1.17549435e-38f;
  if (!(total >= smallest)) return {a.scale / smallest, 0.0f, dot / smallest};
  const float mean = dot / total;
  return {a.scale / total, mean / total, (dot - mean * total) / total};
}

template <typename T>
__global__ void __launch_bounds__(kThreads) gate_backward_kernel(ds_top_k_gate_backward_args a) {
  for (int64_t base = 0; base < a.tokens; base += team_count()) {
    const int64_t token = base + team_number();
    const bool active = token < a.tokens;
    OfWeights weights = {0.0f, 0.0f, 0.0f};
    if (a.dweights != nullptr) weights = of_weights(a, token, active);
    const float* scores = a.scores + token * a.experts;
    const float* dscores = a.dscores + token * a.experts;
    float dot = 0.0f;
    if (a.dscores != nullptr) {
      for (int64_t e = team_rank(); active && e < a.experts; e += kTeam) dot += dscores[e] * scores[e];
      dot = team_sum(dot);
    }
    dot += weights.dot;
    T* const out = static_cast<T*>(a.dlogits) + token * a.experts;
    for (int64_t e = team_rank(); active && e < a.experts; e += kTeam) {
      const float score = scores[e];
      float gradient = a.dscores != nullptr ? dscores[e] : 0.0f;
      for (int64_t j = 0; a.dweights != nullptr && j < a.k; ++j) {  // the same for all lanes: one load
        if (a.chosen[token * a.k + j] == e) gradient += a.dweights[token * a.k + j] * weights.factor - weights.shift;
      }
      const float result = a.score == DS_GATE_SOFTMAX ? score * (gradient - dot) : gradient * score * (1.0f - score);
      out[e] = from_float<T>(result);
    }
  }
}

}  // namespace

int32_t top_k_gate_backward(const void* arguments, const ds_exec* exec) {
  const ds_top_k_gate_backward_args* a = static_cast<const ds_top_k_gate_backward_args*>(arguments);
  if (!is_valid(a, exec) || a->tokens < 0 || a->experts < 0 || a->k < 0) return DS_BAD_ARGUMENT;
  if (a->score != DS_GATE_SOFTMAX && a->score != DS_GATE_SIGMOID) return DS_BAD_ARGUMENT;
  return with_float_type(a->dtype, [&](auto tag) -> int32_t {
    using T = typename decltype(tag)::type;
    return launch(exec, team_shape(a->tokens), gate_backward_kernel<T>, *a);
  });
}

}  // namespace dsk
