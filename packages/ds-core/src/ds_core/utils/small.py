"""Odds and ends that training scripts import beside the engine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ds_core import accelerator as accelerators
from ds_core import comm, generators

__all__ = ["CheckOverflow", "DummyOptim", "call_to_str", "ensure_directory_exists", "set_random_seed"]


def set_random_seed(seed: int) -> None:
    """Seeds torch on host and device, Python's and numpy's global generators."""
    generators.begin(seed, accelerators.current())


def ensure_directory_exists(filename: str | Path) -> None:
    """Makes the folders above `filename`."""
    Path(filename).parent.mkdir(parents=True, exist_ok=True)


def call_to_str(base: str, *args: Any, **kwargs: Any) -> str:
    """``base(1, name=2)``, for a line of a log."""
    words = [repr(value) for value in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
    return f"{base}({', '.join(words)})"


class DummyOptim:
    """Parameter groups without an optimizer, where something asks for ``param_groups``."""

    def __init__(self, params: Iterable[torch.Tensor]) -> None:
        self.param_groups: list[dict[str, Any]] = [{"params": list(params)}]


class CheckOverflow:
    """Whether gradients have a value that is not finite, on any rank. The engine looks by itself."""

    def __init__(self, param_groups: Iterable[Iterable[torch.Tensor]] | None = None, mpu: Any = None) -> None:
        self.params: list[torch.Tensor] = [param for group in param_groups or () for param in group]
        self._group = None if mpu is None else mpu.get_model_parallel_group()

    def has_overflow(self, params: Iterable[torch.Tensor] | None = None) -> bool:
        """True on all ranks when it is true on one. Called on all ranks."""
        grads = [param.grad for param in (self.params if params is None else params) if param.grad is not None]
        found = torch.tensor(float(any(not torch.isfinite(grad).all() for grad in grads)))
        if comm.get_world_size(self._group) > 1:
            comm.all_reduce(found, op=comm.ReduceOp.MAX, group=self._group)
        return bool(found)

    check = has_overflow
