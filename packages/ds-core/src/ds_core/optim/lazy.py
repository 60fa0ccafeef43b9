"""Optimizer states before the first step: what a parameter's first update would start from."""

from __future__ import annotations

import inspect
from typing import Any, Protocol, runtime_checkable

import torch

__all__ = ["PacksStates", "StartsStates", "start_states"]


@runtime_checkable
class PacksStates(Protocol):
    """An optimizer that keeps states in fewer bits than it has them; who asks sees float32, and never the codes.

    Attributes:
        block_size: elements that share what a code is relative to.
    """

    block_size: int

    def packed(self, param: torch.Tensor) -> tuple[str, ...]:
        """Names of the packed states of `param`; none where it was never updated."""

    def unpack(self, param: torch.Tensor, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements of a state, 1-D float32."""

    def pack(self, param: torch.Tensor, name: str, start: int, values: torch.Tensor) -> None:
        """Replaces elements of a state from `start` on; exact for what `unpack` gave of whole blocks."""

    def others(self, param: torch.Tensor) -> dict[str, Any]:
        """What else is kept for `param`, such as the step."""


@runtime_checkable
class StartsStates(Protocol):
    """An optimizer that can make a parameter's states ahead of its first step."""

    def state_of(self, param: torch.Tensor) -> dict[str, Any]:
        """The states of `param`, made if they are not there."""


@runtime_checkable
class _TorchStates(Protocol):
    """torch's own optimizers make states in this method, as the first thing a step does."""

    def _init_group(self, *lists: Any) -> Any: ...


def start_states(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> bool:
    """Makes the states of one optimizer parameter as its first step would, and takes no step.

    Returns:
        False where they cannot be made ahead: the optimizer is not torch's and has no ``state_of``, or makes a state of
        its first gradient, as SGD's momentum.
    """
    if optimizer.state.get(parameter):
        return True
    if isinstance(optimizer, StartsStates):
        optimizer.state_of(parameter)
    elif isinstance(optimizer, _TorchStates):
        group = next(group for group in optimizer.param_groups if any(p is parameter for p in group["params"]))
        lists = len(inspect.signature(optimizer._init_group).parameters) - 1
        before = parameter.grad
        if before is None:
            dtype = parameter.grad_dtype or parameter.dtype
            parameter.grad = torch.zeros((), dtype=dtype, device=parameter.device).expand(parameter.shape)
        try:
            optimizer._init_group({**group, "params": [parameter]}, *([] for _ in range(lists)))
        finally:
            parameter.grad = before
    return bool(optimizer.state.get(parameter))
