"""top_k_gate: which experts each token goes to, and with which weights; forward and backward."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._top_k_gate_cases import BACKWARD_CASES, FORWARD_CASES
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_shape, name_of
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "GROUP_SCORES", "MOST_EXPERTS", "MOST_GROUPS", "SCORES", "Gate", "top_k_gate"]

SCORES = {"softmax": 1, "sigmoid": 2}
"""Way to score to its number in ``enum ds_gate_score`` of ds_kernel/moe.h."""

GROUP_SCORES = {"max": 1, "top2": 2}
"""Way to score a group to its number in ``enum ds_gate_group_score`` of ds_kernel/moe.h."""

MOST_EXPERTS = 8192
MOST_GROUPS = 64

_LOWEST = torch.finfo(torch.float32).min
_TINY = torch.finfo(torch.float32).tiny


class Gate(NamedTuple):
    """What `top_k_gate` returns.

    Args:
        weights: [tokens, k] float32, of the chosen experts in order of falling score.
        experts: [tokens, k] int64.
        scores: [tokens, experts] float32, of all experts before any choice: what balancing losses average.
    """

    weights: torch.Tensor
    experts: torch.Tensor
    scores: torch.Tensor


def top_k_gate(
    logits: torch.Tensor,
    k: int,
    *,
    score: str = "softmax",
    renormalize: bool = False,
    bias: torch.Tensor | None = None,
    groups: int = 1,
    groups_kept: int = 1,
    group_score: str = "max",
    scale: float = 1.0,
) -> Gate:
    """The `k` experts of highest score of each token, in float32; equal ones by the lowest number.

    Scores are the softmax or sigmoid of the logits. Experts are chosen by score plus `bias`; without a bias by their
    logits, which order them alike. With more than one group, a group counts as much as its best expert (``max``) or its
    two best together (``top2``), the `groups_kept` best groups are kept, and the others' experts are out. Weights are
    the scores, without the bias, of the chosen; `renormalize` divides them by their sum; `scale` multiplies them.
    Differentiable in `logits` through `weights` and `scores`; the bias has no gradient, it is moved by counts.

    A NaN counts as the lowest value there is, so a token of NaNs goes to the first experts with weights of NaN. For a
    load-balancing loss, ``scores.mean(0)`` and the counts of `expert_permutation` are what it multiplies.

    Args:
        logits: [tokens, experts], float32, bfloat16 or float16, at most 8192 experts.
        k: experts a token, no more than the kept groups have.
        score: ``softmax`` or ``sigmoid``.
        renormalize: weights of a token add up to `scale`.
        bias: [experts] float32, added to scores to choose, or None.
        groups: groups of consecutive experts, a divisor of their number, at most 64.
        groups_kept: groups that a token may choose from.
        group_score: ``max`` or ``top2``.
        scale: multiplies the weights.

    Raises:
        OpError: an argument does not fit.

    Source: softmax gates: N. Shazeer et al., "Outrageously Large Neural Networks", 2017, and W. Fedus et al., "Switch
    Transformers", 2021; groups: DeepSeek-AI, "DeepSeek-V2", 2024, section 2.2.2 (device-limited routing); sigmoid, bias
    and sums of two: DeepSeek-AI, "DeepSeek-V3 technical report", 2024, section 2.1.2.
    """
    arguments = (logits, bias, k, score, renormalize, groups, groups_kept, group_score, scale)
    if is_plain(logits) and not (torch.is_grad_enabled() and logits.requires_grad):
        return Gate(*run(DEFINITIONS[0], *arguments))
    return Gate(*torch.ops.ds.top_k_gate(*arguments))


def _check(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    score: str,
    renormalize: bool,
    groups: int,
    groups_kept: int,
    group_score: str,
    scale: float,
) -> None:
    op = "top_k_gate"
    expect_dtype(op, "logits", logits)
    if logits.dim() != 2 or not 1 <= logits.shape[1] <= MOST_EXPERTS:
        raise OpError(
            f"{op}: logits must be [tokens, experts] with 1 to {MOST_EXPERTS} experts, got shape {tuple(logits.shape)}."
        )
    experts = logits.shape[1]
    for name, value, known in (("score", score, SCORES), ("group_score", group_score, GROUP_SCORES)):
        if value not in known:
            raise OpError(f"{op}: {name} must be {' or '.join(known)}, got {value!r}.")
    if not 1 <= groups <= MOST_GROUPS or experts % groups != 0:
        raise OpError(
            f"{op}: groups must be from 1 to {MOST_GROUPS} and divide the number of experts ({experts}), got {groups}."
        )
    if not 1 <= groups_kept <= groups:
        raise OpError(f"{op}: groups_kept must be from 1 to groups ({groups}), got {groups_kept}.")
    if group_score == "top2" and groups > 1 and experts // groups < 2:
        raise OpError(f"{op}: group_score top2 needs groups of 2 experts or more, got {experts // groups}. Use max.")
    if not 1 <= k <= experts // groups * groups_kept:
        raise OpError(f"{op}: k must be from 1 to {experts // groups * groups_kept} (experts to choose from), got {k}.")
    if bias is not None:
        expect_dtype(op, "bias", bias, (torch.float32,))
        expect_shape(op, "bias", bias, (experts,), "one value an expert")
        expect_device(op, "bias", bias, "logits", logits.device)


def _check_backward(
    scores: torch.Tensor,
    experts: torch.Tensor,
    dweights: torch.Tensor | None,
    dscores: torch.Tensor | None,
    score: str,
    renormalize: bool,
    scale: float,
    dtype: torch.dtype,
) -> None:
    op = "top_k_gate_backward"
    expect_dtype(op, "scores", scores, (torch.float32,))
    expect_dtype(op, "experts", experts, (torch.int64,))
    if scores.dim() != 2 or experts.dim() != 2 or scores.shape[0] != experts.shape[0]:
        raise OpError(
            f"{op}: scores must be [tokens, experts] and experts [tokens, k], got {tuple(scores.shape)} and "
            f"{tuple(experts.shape)}."
        )
    for name, gradient, like in (("dweights", dweights, experts), ("dscores", dscores, scores)):
        if gradient is not None:
            expect_dtype(op, name, gradient, (torch.float32,))
            expect_shape(op, name, gradient, like.shape, f"the shape of {'experts' if like is experts else 'scores'}")
            expect_device(op, name, gradient, "scores", scores.device)
    if score not in SCORES:
        raise OpError(f"{op}: score must be {' or '.join(SCORES)}, got {score!r}.")
    if dtype not in FLOATS:
        raise OpError(f"{op}: dtype must be {', '.join(name_of(d) for d in FLOATS)}, got {name_of(dtype)}.")


def _eligible(values: torch.Tensor) -> torch.Tensor:
    """Values with NaN and what is below every number as the lowest number, so that nothing excluded is above them."""
    return torch.where(values.isnan(), _LOWEST, values).clamp(min=_LOWEST)


def _highest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the highest values of each row, equal ones by the lowest place."""
    return values.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def _choice(
    logits: torch.Tensor,
    scores: torch.Tensor,
    bias: torch.Tensor | None,
    groups: int,
    groups_kept: int,
    group_score: str,
) -> torch.Tensor:
    """[tokens, experts]: what experts are chosen by, minus infinity for those that are out."""
    by_sum = groups > 1 and group_score == "top2"
    choice = _eligible(scores + bias if bias is not None else scores if by_sum else logits)
    if groups == 1:
        return choice
    grouped = choice.view(choice.shape[0], groups, choice.shape[1] // groups)
    best = grouped.topk(2, -1).values.sum(-1).clamp(min=_LOWEST) if by_sum else grouped.amax(-1)
    kept = torch.zeros_like(best, dtype=torch.bool).scatter_(1, _highest(best, groups_kept), True)
    return torch.where(kept.unsqueeze(-1), grouped, float("-inf")).view(choice.shape)


def _reference(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    score: str,
    renormalize: bool,
    groups: int,
    groups_kept: int,
    group_score: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    exact = logits.float().contiguous()
    scores = exact.softmax(-1) if score == "softmax" else exact.sigmoid()
    experts = _highest(_choice(exact, scores, bias, groups, groups_kept, group_score), k).contiguous()
    weights = scores.gather(1, experts)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True).clamp(min=_TINY)
    return weights * scale, experts, scores


def _reference_backward(
    scores: torch.Tensor,
    experts: torch.Tensor,
    dweights: torch.Tensor | None,
    dscores: torch.Tensor | None,
    score: str,
    renormalize: bool,
    scale: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    scores = scores.contiguous()
    ds = torch.zeros_like(scores) if dscores is None else dscores.clone(memory_format=torch.contiguous_format)
    if dweights is not None:
        dchosen = dweights * scale
        if renormalize:
            chosen = scores.gather(1, experts)
            total = chosen.sum(-1, keepdim=True)
            mean = (dchosen * chosen).sum(-1, keepdim=True) / total.clamp(min=_TINY)
            # Below the smallest normal number the divisor is a constant.
            dchosen = (dchosen - torch.where(total >= _TINY, mean, 0.0)) / total.clamp(min=_TINY)
        ds.scatter_add_(1, experts, dchosen)
    if score == "sigmoid":
        return (ds * scores * (1 - scores)).to(dtype)
    return (scores * (ds - (ds * scores).sum(-1, keepdim=True))).to(dtype)


def _fake(
    logits: torch.Tensor,
    bias: torch.Tensor | None,
    k: int,
    score: str,
    renormalize: bool,
    groups: int,
    groups_kept: int,
    group_score: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = logits.shape[0]
    return (
        logits.new_empty((tokens, k), dtype=torch.float32),
        logits.new_empty((tokens, k), dtype=torch.int64),
        logits.new_empty(tuple(logits.shape), dtype=torch.float32),
    )


def _fake_backward(
    scores: torch.Tensor,
    experts: torch.Tensor,
    dweights: torch.Tensor | None,
    dscores: torch.Tensor | None,
    score: str,
    renormalize: bool,
    scale: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    return scores.new_empty(tuple(scores.shape), dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    logits, _, _, score, renormalize, _, _, _, scale = inputs
    _, experts, scores = output
    ctx.mark_non_differentiable(experts)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(scores, experts)
    ctx.settings = (score, renormalize, scale, logits.dtype)


def _differentiate(
    ctx: Any, dweights: torch.Tensor | None, dexperts: None, dscores: torch.Tensor | None
) -> tuple[torch.Tensor | None, ...]:
    dlogits = None
    if dweights is not None or dscores is not None:
        dlogits = torch.ops.ds.top_k_gate_backward(*ctx.saved_tensors, dweights, dscores, *ctx.settings)
    return (dlogits, *(None,) * 8)


DEFINITIONS = (
    OpDefinition(
        schema=(
            "top_k_gate(Tensor logits, Tensor? bias, int k, str score, bool renormalize, int groups, int groups_kept, "
            "str group_score, float scale) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=FORWARD_CASES,
    ),
    OpDefinition(
        schema=(
            "top_k_gate_backward(Tensor scores, Tensor experts, Tensor? dweights, Tensor? dscores, str score, "
            "bool renormalize, float scale, ScalarType dtype) -> Tensor"
        ),
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=BACKWARD_CASES,
    ),
)
