"""A mixture of experts the long way round: one token, one choice and one expert after another, in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch

__all__ = ["Chosen", "choose", "mixture"]


class Chosen(NamedTuple):
    """What a plain gate decided. `pairs` are (token, expert, weight) of those that go somewhere."""

    pairs: list[tuple[int, int, torch.Tensor]]
    l_aux: torch.Tensor
    counts: list[int]
    dropped: int


def choose(
    logits: torch.Tensor,
    k: int,
    *,
    factor: float = 1.0,
    minimum: int = 4,
    drop: bool = True,
    ranked: Sequence[Sequence[int]] | None = None,
    priority: torch.Tensor | None = None,
    by_probability: bool = False,
    normalise: bool | None = None,
    used: Sequence[int] | None = None,
) -> Chosen:
    """The experts of each token.

    Args:
        logits: [T, E].
        ranked: experts of each token in the order of choice; None: by logits.
        priority: [T]: which tokens an expert takes first; None: by position.
        by_probability: by the probability of the expert instead.
        used: tokens that count; None for all.
    """
    tokens, experts = logits.shape
    scores = logits.softmax(-1)
    known = scores.tolist()
    ranked = ranked or [row.argsort(descending=True, stable=True)[:k].tolist() for row in logits]
    real = range(tokens) if used is None else used
    capacity = max(math.ceil(Fraction(str(factor)) * tokens * k / experts), minimum) if drop else tokens * k
    asked: list[list[tuple[int, int]]] = [[] for _ in range(experts)]
    order = [(t, s) for s in range(k) for t in real] if k == 2 else [(t, s) for t in real for s in range(k)]
    for t, s in order:
        asked[ranked[t][s]].append((t, s))
    kept = set()
    for expert, mine in enumerate(asked):
        if priority is not None:
            mine = sorted(mine, key=lambda pair: -float(priority[pair[0]]))
        elif by_probability:
            mine = sorted(mine, key=lambda pair: -known[pair[0]][expert])
        kept.update(mine[:capacity])
    pairs = []
    for t in real:
        mine = [s for s in range(k) if (t, s) in kept]
        total = sum(scores[t, ranked[t][s]] for s in mine) if (normalise if normalise is not None else k > 1) else 1.0
        pairs += [(t, ranked[t][s], scores[t, ranked[t][s]] / total) for s in mine]
    counts = [len(mine) for mine in asked]
    first = [sum(ranked[t][0] == e for t in real) / tokens for e in range(experts)]
    shares = torch.tensor(first if k == 2 else [count / (tokens * k) for count in counts])
    return Chosen(pairs, (scores.mean(0) * shares).sum() * experts, counts, sum(counts) - len(pairs))


def mixture(x: torch.Tensor, chosen: Chosen, experts: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> torch.Tensor:
    """Each expert on the tokens that chose it, weighted and added to them: a loop over experts."""
    y = torch.zeros_like(x)
    for number, expert in enumerate(experts):
        mine = [(token, weight) for token, e, weight in chosen.pairs if e == number]
        if mine:
            at = torch.tensor([token for token, _ in mine])
            y = y.index_add(0, at, expert(x[at]) * torch.stack([weight for _, weight in mine]).unsqueeze(1))
    return y
