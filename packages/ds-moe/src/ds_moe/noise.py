"""Noise for gates: jitter on what goes in, Gumbel noise on logits so that the largest is a sample of their softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["gumbel_rsample", "multiplicative_jitter"]


def multiplicative_jitter(x: torch.Tensor, device: object = None, epsilon: float = 1e-2) -> torch.Tensor:
    """`x` with every element multiplied by a draw from [1 - epsilon, 1 + epsilon).

    Args:
        x: any shape, floating point.
        device: not used, the draws are made where `x` is; for calls written for DeepSpeed.
        epsilon: 0 returns `x`.

    Source: W. Fedus et al., "Switch Transformers", 2021, section 2.4 (input jitter).
    """
    if epsilon == 0:
        return x
    return x * torch.empty_like(x).uniform_(1.0 - epsilon, 1.0 + epsilon)


def gumbel_rsample(shape: Sequence[int], device: torch.device | str | None = None) -> torch.Tensor:
    """Draws from the standard Gumbel distribution, float32: added to logits, the largest is a draw from their softmax.

    Source: C. Maddison et al., "A* Sampling", 2014, section 2.
    """
    # An exponential draw is -log of a uniform one, and never 0 in the way that a uniform draw may be.
    return -torch.empty(tuple(shape), device=device).exponential_().clamp(min=torch.finfo(torch.float32).tiny).log()
