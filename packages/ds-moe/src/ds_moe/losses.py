"""What a gate is trained by beside the task: even loads and small logits; and how undecided it is.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

import torch

__all__ = ["gate_entropy", "load_balance_loss", "z_loss"]


def load_balance_loss(probabilities_TE: torch.Tensor, fractions_E: torch.Tensor) -> torch.Tensor:
    """``E * sum over experts of fraction * mean probability``: 1 for even loads, E when one expert gets all. A scalar.

    The fractions have no gradient; the probabilities push tokens away from experts that get many.

    Args:
        probabilities_TE: [T, E] float32, rows that add up to 1.
        fractions_E: [E] of the tokens that chose each expert: GShard counts first choices, Switch the only one.

    Source: D. Lepikhin et al., "GShard", 2020, algorithm 1 (there times the constant 1 / E**2); W. Fedus et al.,
    "Switch Transformers", 2021, eq. 4.
    """
    tokens, experts = probabilities_TE.shape
    mean_E = probabilities_TE.sum(0) / max(tokens, 1)
    return (mean_E * fractions_E.to(mean_E.dtype)).sum() * experts


def z_loss(logits_TE: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the square of logsumexp of the logits: keeps logits small, where roundings are. A scalar.

    Source: B. Zoph et al., "ST-MoE", 2022, eq. 5.
    """
    return logits_TE.float().logsumexp(-1).square().sum() / max(logits_TE.shape[0], 1)


def gate_entropy(probabilities_TE: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the entropy of the gate, in nats: 0 decided, log E undecided. A scalar."""
    total: torch.Tensor = torch.special.entr(probabilities_TE).sum()
    return total / max(probabilities_TE.shape[0], 1)
