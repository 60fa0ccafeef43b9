"""What block-sparse and Evoformer attention share: dense arithmetic of the references, its gradients, and checks.

Shapes: O outer (batches, or batches times sequences), H heads, Q queries, K keys, D elements of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._paged_attention import MAX_HEAD_DIM
from ds_core.ops.case import Exactness
from ds_core.ops.checks import expect_device, expect_dtype, expect_like, expect_shape

__all__ = [
    "BACKWARD_EXACTNESS",
    "FORWARD_EXACTNESS",
    "Gradients",
    "attend",
    "check_gradient",
    "check_heads",
    "differentiate",
    "expanded",
    "reduced",
]

FORWARD_EXACTNESS = Exactness(ulps=1, relative=2e-5)
BACKWARD_EXACTNESS = Exactness(ulps=1, relative=5e-5)
"""Sums over keys run in another order than torch's; one rounding at the end may fall to the other side."""


class Gradients(NamedTuple):
    """In float32; `scores` [O, H, Q, K] is the gradient of whatever was added to the scaled products."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    scores: torch.Tensor


def attend(
    q_OHQD: torch.Tensor, k_OHKD: torch.Tensor, v_OHKD: torch.Tensor, added: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(attention, log-sum-exp of the scores [O, H, Q]) in float32; a query that sees nothing gets 0 and -inf.

    Args:
        added: expands to [O, H, Q, K]; -inf where a key is not seen.
    """
    scores = _scores(q_OHQD, k_OHKD, added, scale)
    lse = scores.logsumexp(-1) if scores.shape[-1] else scores.new_full(scores.shape[:-1], -torch.inf)
    return _probabilities(scores, lse) @ v_OHKD.float(), lse


def differentiate(
    dy_OHQD: torch.Tensor,
    q_OHQD: torch.Tensor,
    k_OHKD: torch.Tensor,
    v_OHKD: torch.Tensor,
    added: torch.Tensor | None,
    y_OHQD: torch.Tensor,
    lse_OHQ: torch.Tensor,
    scale: float,
) -> Gradients:
    """Gradients of `attend`, with probabilities computed again from the saved log-sum-exp.

    Source: T. Dao, "FlashAttention-2: Faster Attention with Better Parallelism and Work Partitioning", 2023, section
        3.1, algorithm 2.
    """
    q, k, v, dy = q_OHQD.float(), k_OHKD.float(), v_OHKD.float(), dy_OHQD.float()
    p = _probabilities(_scores(q, k, added, scale), lse_OHQ)
    along = (dy * y_OHQD.float()).sum(-1, keepdim=True)
    scores = p * (dy @ v.mT - along)
    return Gradients(scores @ k * scale, scores.mT @ q * scale, p.mT @ dy, scores)


def _scores(q: torch.Tensor, k: torch.Tensor, added: torch.Tensor | None, scale: float) -> torch.Tensor:
    scores = q.float() @ k.float().mT * scale
    return scores if added is None else scores + added


def _probabilities(scores: torch.Tensor, lse: torch.Tensor) -> torch.Tensor:
    return torch.where((lse == -torch.inf).unsqueeze(-1), 0.0, (scores - lse.unsqueeze(-1)).exp())


def expanded(bias: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor | None:
    """`bias` expanded to `shape`, or as it is where it does not fit, for a check to say what is wrong with it."""
    if bias is None or bias.shape == shape:
        return bias
    try:
        return bias.expand(shape)
    except RuntimeError:
        return bias


def reduced(gradient: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`gradient` summed over the dimensions that `like` expands to it in, in the dtype of `like`."""
    return gradient.sum_to_size(like.shape).to(like.dtype)


def check_heads(op: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dims: str) -> None:
    """Queries, keys and values of one shape, dtype and device, with a head that is not too long."""
    expect_dtype(op, "q", q)
    if not 1 <= q.shape[-1] <= MAX_HEAD_DIM:
        raise OpError(f"{op}: q must be {dims} with dim 1 to {MAX_HEAD_DIM}, got shape {tuple(q.shape)}.")
    expect_like(op, "k", k, "q", q)
    expect_like(op, "v", v, "q", q)


def check_gradient(
    op: str, dy: torch.Tensor, q: torch.Tensor, y: torch.Tensor, lse: torch.Tensor, rows: tuple[int, ...]
) -> None:
    """`dy` and `y` are like `q`; the log-sum-exp is float32 of shape `rows`."""
    expect_like(op, "dy", dy, "q", q)
    expect_like(op, "y", y, "q", q)
    expect_dtype(op, "lse", lse, (torch.float32,))
    expect_shape(op, "lse", lse, rows, "one for each row of scores")
    expect_device(op, "lse", lse, "q", q.device)
