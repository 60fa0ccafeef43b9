"""What passes a gate between two updates: loads of experts, drops, losses. Whole numbers, so ranks add up exactly.

Shapes: T tokens, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ds_moe.losses import gate_entropy
from ds_moe.routing import Routing

__all__ = ["Load", "LoadReport"]

_UNIT = 2.0**-24
"""Real numbers are kept as whole multiples of this: finer than matters, and sums do not depend on their order."""

_EXTRA = 5  # pairs dropped, forwards, balancing loss, z-loss, entropy


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a gate saw since the last update, over all ranks whose numbers were added.

    Args:
        counts: pairs that asked for each expert.
        dropped: of these, pairs above the capacity.
        balance, z, entropy: means over forwards.
        is_of_gate: whether the last four are known; else only loads are, as for models with routers of their own.
    """

    counts: tuple[int, ...]
    dropped: int
    balance: float
    z: float
    entropy: float
    is_of_gate: bool = True

    @property
    def max_over_mean(self) -> float:
        """Load of the busiest expert in even shares; 1 is even, 0 when nothing passed."""
        total = sum(self.counts)
        return max(self.counts) * len(self.counts) / total if total else 0.0

    @property
    def dropped_share(self) -> float:
        """Pairs dropped, of all."""
        total = sum(self.counts)
        return self.dropped / total if total else 0.0


class Load:
    """Adds up what passes one gate. Silent until somebody listens.

    Attributes:
        is_heard: whether to add up at all.
    """

    def __init__(self, num_experts: int) -> None:
        self.num_experts: int = num_experts
        self.is_heard: bool = False
        self._sums: torch.Tensor | None = None

    @property
    def size(self) -> int:
        """Numbers that `take` gives."""
        return self.num_experts + _EXTRA

    def add(self, routing: Routing) -> None:
        """Counts one forward in. Does not wait for the device."""
        if not self.is_heard:
            return
        with torch.no_grad():
            kept = (routing.experts >= 0).sum()
            real = torch.stack((routing.balance, routing.z, gate_entropy(routing.probabilities)))
            whole = (real.nan_to_num() / _UNIT).round().to(torch.int64)
            dropped = (routing.counts.sum() - kept).reshape(1)
            now = torch.cat((routing.counts, dropped, torch.ones_like(dropped), whole))
            self._sums = now if self._sums is None else self._sums + now

    def add_counts(self, counts: torch.Tensor) -> None:
        """Counts one forward in, of which no more is known than how many pairs asked for each expert, [E] int64."""
        if self.is_heard:
            now = torch.nn.functional.pad(counts, (0, _EXTRA))
            self._sums = now if self._sums is None else self._sums + now

    def take(self, device: torch.device) -> torch.Tensor:
        """[size] int64 of what was added up, which is forgotten."""
        sums, self._sums = self._sums, None
        return torch.zeros(self.size, dtype=torch.int64, device=device) if sums is None else sums

    def read(self, sums: list[int]) -> LoadReport:
        """What `take` gave, added up over ranks, in words."""
        dropped, forwards, *real = sums[self.num_experts :]
        balance, z, entropy = (each * _UNIT / max(forwards, 1) for each in real)
        return LoadReport(tuple(sums[: self.num_experts]), dropped, balance, z, entropy, is_of_gate=forwards > 0)
