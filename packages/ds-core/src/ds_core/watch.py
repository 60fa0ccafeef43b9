"""Watches a module's outputs so that plain ``loss.backward()`` is scaled and noticed like ``engine.backward``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["OutputWatch"]


class OutputWatch:
    """Hooks on the tensors a forward returned.

    When a backward that the engine does not drive reaches one of them, its gradient is multiplied by the factor that
    `begin` returns, and `end` runs once when that backward pass is over. Under `driven` the hooks stand aside: the
    loss itself was scaled.
    """

    def __init__(self, begin: Callable[[], float], end: Callable[[], None]) -> None:
        self._begin = begin
        self._end = end
        self._is_driven = False
        self._factor: float | None = None
        self._closed = False

    def observe(self, output: Any) -> None:
        """Hooks every tensor of `output` that carries a graph."""
        if isinstance(output, torch.Tensor):
            if output.requires_grad:
                output.register_hook(self._on_gradient)
        else:
            for leaf in _tensors(output):
                if leaf.requires_grad:
                    leaf.register_hook(self._on_gradient)

    @contextmanager
    def driven(self) -> Iterator[None]:
        """While active, gradients pass unchanged."""
        self._is_driven = True
        try:
            yield
        finally:
            self._is_driven = False

    def _on_gradient(self, gradient: torch.Tensor) -> torch.Tensor | None:
        if self._is_driven or self._closed:
            return None
        if self._factor is None:
            self._factor = self._begin()
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        return gradient * self._factor if self._factor != 1.0 else None

    def _finish(self) -> None:
        self._factor = None
        self._end()

    def close(self) -> None:
        """Hooks on tensors still alive do nothing from now on."""
        self._closed = True


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif value is not None and type(value).__dict__.get("__dataclass_fields__") is not None:
        yield from _tensors(vars(value))
