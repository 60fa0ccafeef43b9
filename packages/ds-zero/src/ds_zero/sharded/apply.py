"""``module.apply(fn)`` on a sharded module: each module's own parameters are whole while `fn` sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ds_zero.gathered import GatheredParameters

__all__ = ["GatheringApply"]


class GatheringApply:
    """Gives every module of a tree an ``apply`` of its own, for calls on all ranks with a `fn` that does the same."""

    def __init__(self, root: nn.Module) -> None:
        self._modules: list[nn.Module] = list(root.modules())
        for module in self._modules:
            module.__dict__["apply"] = _make(module)

    def close(self) -> None:
        """Gives back the usual ``apply``."""
        for module in self._modules:
            module.__dict__.pop("apply", None)
        self._modules = []


def _make(module: nn.Module) -> Callable[[Callable[[nn.Module], Any]], nn.Module]:
    def apply(fn: Callable[[nn.Module], Any]) -> nn.Module:
        for child in module.children():
            child.apply(fn)
        with GatheredParameters(list(module.parameters(recurse=False))):
            fn(module)
        return module

    return apply
