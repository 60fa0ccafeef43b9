"""The op that this device serves itself. All others run as core's references do: slow, correct."""

from __future__ import annotations

import torch

__all__ = ["sum_of_squares"]


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """The sum of squares of a 1-D tensor as a 0-dim float64 tensor."""
    with torch.no_grad():
        return x.to(torch.float64).square().sum()
