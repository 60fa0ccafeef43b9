"""`Experts`: modules, one for each expert, under their numbers over all ranks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch

from ds_moe.dispatch import Groups
from ds_moe.errors import MoeConfigError

__all__ = ["ExpertSource", "Experts", "make_expert"]

ExpertSource = torch.nn.Module | Callable[[], torch.nn.Module]
"""A module to copy, or what makes one."""


class Experts(torch.nn.Module):
    """Experts as modules named ``0``, ``1`` and so on: their numbers over all ranks, wherever they are kept.

    Every expert of this rank is called in every forward, also without rows: what hangs on a module (gathering of
    parameters, hooks) happens on all ranks alike, and an expert without tokens has a gradient of zeros.

    Args:
        expert: a module that is copied for each expert, so that all begin alike; or a callable that makes one, called
            for each under a seed of its own, so that an expert's first values depend on its number and on torch's seed
            only.
        num_local_experts: experts to make.
        expert_group_name: kept for calls written for DeepSpeed, in the attribute `group_name` of parameters.

    Attributes:
        first: number of the first expert that this rank keeps.
    """

    def __init__(self, expert: ExpertSource, num_local_experts: int = 1, expert_group_name: str | None = None) -> None:
        super().__init__()
        if num_local_experts < 1:
            raise MoeConfigError(f"num_local_experts must be 1 or more, got {num_local_experts}")
        self.first: int = 0
        seed = None if isinstance(expert, torch.nn.Module) else int(torch.randint(2**62, (), device="cpu"))
        for number in range(num_local_experts):
            self.add_module(str(number), make_expert(expert, None if seed is None else seed + number))
        for parameter in self.parameters():
            mark(parameter, expert_group_name)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[torch.nn.Module]:
        yield from self.children()

    def keep(self, first: int, count: int) -> None:
        """Forgets all experts but `count` from number `first` on, which keep their names."""
        for number in range(self.first, self.first + len(self)):
            if not first <= number < first + count:
                del self._modules[str(number)]
        self.first = first

    def forward(self, rows: torch.Tensor, groups: Groups | None = None) -> torch.Tensor:
        """Each expert on its rows.

        Args:
            rows: [N, H] sorted by expert; without `groups` a table [ranks, local experts, places, H] as DeepSpeed's
                container takes it.
            groups: which rows are whose.

        Returns:
            Shaped like `rows`, where experts return as many features as they take.
        """
        pieces = rows.chunk(len(self), dim=1) if groups is None else rows.split(groups.sizes)
        made = [_first(expert(piece)) for expert, piece in zip(self, pieces, strict=True)]
        return torch.cat(made, dim=1 if groups is None else 0)


def make_expert(expert: ExpertSource, seed: int | None) -> torch.nn.Module:
    """A copy of a module, or a new one under `seed`, which leaves torch's generators as they were.

    Raises:
        MoeConfigError: what was called did not return a module.
    """
    if isinstance(expert, torch.nn.Module):
        return copy.deepcopy(expert)
    with torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        made = expert()
    if not isinstance(made, torch.nn.Module):
        raise MoeConfigError(
            f"expert must be a module, or a callable that returns one; the callable returned {type(made).__name__}"
        )
    return made


def mark(parameter: torch.nn.Parameter, group_name: str | None) -> None:
    """Gives a parameter the attributes that tell an expert's from others."""
    parameter.allreduce = False  # type: ignore[attr-defined]
    parameter.group_name = group_name or ""  # type: ignore[attr-defined]


def _first(made: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Layers that return their bias apart return it second."""
    return made[0] if isinstance(made, tuple) else made
