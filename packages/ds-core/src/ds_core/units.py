"""Plans units: which parameters of a module tree are reduced, gathered and released together.

Pure: it reads names, shapes and the tree, never values. A unit is the largest subtree that stays under a limit, so a
block of a transformer is one and its small layers are not gathered one by one. Parameters too small to be worth a
collective of their own make up one last unit.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["SMALL", "Unit", "plan_units", "unit_limit"]

SMALL = "(small parameters)"
"""Name of the unit that holds the small ones."""


@dataclass(frozen=True, slots=True)
class Unit:
    """Parameters that move together.

    Attributes:
        index: place in the plan, which is registration order; the small unit is last.
        path: the module whose forward uses them, "" for the root; `SMALL` for the small ones.
        names: names of its parameters in the root module, tied ones under their first name.
        numel: elements of all of them.
    """

    index: int
    path: str
    names: tuple[str, ...]
    numel: int

    @property
    def is_small(self) -> bool:
        """Whether it is the unit of small parameters."""
        return self.path == SMALL

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.path or "(root)"


def unit_limit(module: nn.Module, small_numel: int) -> int:
    """The default limit: a whole unit may be as large as the largest parameter, for that much is gathered anyway."""
    return max((p.numel() for p in module.parameters() if p.numel() > small_numel), default=1)


def plan_units(
    module: nn.Module,
    *,
    small_numel: int,
    small_total_numel: int = sys.maxsize,
    limit_numel: int | None = None,
    is_leaf: Callable[[nn.Module], bool] = lambda module: False,
    whole: Collection[torch.Tensor] = (),
) -> tuple[Unit, ...]:
    """Cuts `module` into units.

    Args:
        module: the root; may be on the meta device.
        small_numel: parameters of at most this many elements go to the small unit.
        small_total_numel: what the small unit may come to; further small parameters are taken for large ones.
        limit_numel: a subtree is one unit when its parameters come to no more; None: the largest parameter's size.
        is_leaf: modules that are never cut, however large.
        whole: parameters that go to the small unit whatever their size.

    Returns:
        Units in registration order; every parameter, trainable or not, in exactly one; none empty.
    """
    limit = unit_limit(module, small_numel) if limit_numel is None else limit_numel
    kept = {id(parameter) for parameter in whole}
    seen: set[int] = set()
    small: list[tuple[str, int]] = []
    chosen = _small(module, small_numel, small_total_numel) | kept
    cuts: list[tuple[str, list[tuple[str, int]]]] = []

    def take(owner: nn.Module, path: str, recurse: bool) -> list[tuple[str, int]]:
        taken = []
        for name, parameter in owner.named_parameters(prefix=path, recurse=recurse):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            numel = parameter.numel()
            if id(parameter) in chosen:
                small.append((name, numel))
            else:
                taken.append((name, numel))
        return taken

    def large(owner: nn.Module) -> int:
        return sum(p.numel() for p in owner.parameters() if id(p) not in seen and id(p) not in chosen)

    def visit(owner: nn.Module, path: str) -> None:
        together = is_leaf(owner) or large(owner) <= limit
        taken = take(owner, path, recurse=together)
        if taken:
            cuts.append((path, taken))
        if not together:
            for name, child in owner.named_children():
                visit(child, f"{path}.{name}" if path else name)

    visit(module, "")
    if small:
        cuts.append((SMALL, small))
    return tuple(
        Unit(index, path, tuple(name for name, _ in members), sum(numel for _, numel in members))
        for index, (path, members) in enumerate(cuts)
    )


def _small(module: nn.Module, small_numel: int, total_numel: int) -> set[int]:
    """Ids of the parameters that make up the small unit: those that cannot be cut, and small ones while they fit."""
    found: set[int] = set()
    total = 0
    for parameter in module.parameters():
        numel = parameter.numel()
        if numel <= 1 or parameter.dim() == 0:
            found.add(id(parameter))
        elif numel <= small_numel and total + numel <= total_numel:
            found.add(id(parameter))
            total += numel
    return found
