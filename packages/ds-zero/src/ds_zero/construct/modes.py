"""The two official doors to what a constructor calls: torch's dispatch mode, and its function mode for reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from ds_zero.construct.operators import Operators

__all__ = ["DispatchMode", "FunctionMode"]


class DispatchMode(TorchDispatchMode):
    """Sends every operator to `Operators.dispatch`."""

    def __init__(self, operators: Operators) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._operators: Operators = operators

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: without it torch imports its compiler, over a second, at the first operator."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return self._operators.dispatch(func, args, dict(kwargs or {}))


class FunctionMode(TorchFunctionMode):
    """Catches the few reads of a tensor's memory that are not operators."""

    def __init__(self, operators: Operators, found: Callable[[torch.nn.Parameter], None]) -> None:
        super().__init__()
        self._operators: Operators = operators
        self._found: Callable[[torch.nn.Parameter], None] = found
        tensor = torch.Tensor
        self._reads: frozenset[Any] = frozenset(
            {tensor.tolist, tensor.numpy, tensor.__array__, tensor.__repr__, tensor.__format__}
        )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in self._reads and self._operators.cell_of(args[0]) is not None:
            return self._read(func, args, kwargs)
        if func is torch.Tensor.__deepcopy__ and self._operators.cell_of(args[0]) is not None:
            return self._deepcopy(args[0], args[1])
        answer = func(*args, **kwargs)
        if isinstance(answer, torch.nn.Parameter):  # `copy.deepcopy` of a module registers nothing
            self._found(answer)
        return answer

    def _read(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self._operators.paused():
            (value,) = self._operators.evaluate([args[0]])
            answer = func(value.requires_grad_(args[0].requires_grad), *args[1:], **kwargs)
        if func in (torch.Tensor.numpy, torch.Tensor.__array__):
            answer.flags.writeable = False  # a write into this copy would be lost; let numpy say so
        return answer

    @staticmethod
    def _deepcopy(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        """`copy.deepcopy` of a plain tensor, whose own way copies the storage's bytes behind the dispatcher."""
        if id(tensor) not in memo:
            copied = tensor.detach().clone()
            memo[id(tensor)] = copied.requires_grad_(tensor.requires_grad)
            copied.__dict__.update(tensor.__dict__)
        found: torch.Tensor = memo[id(tensor)]
        return found
