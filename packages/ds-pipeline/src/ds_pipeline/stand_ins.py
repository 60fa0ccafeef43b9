"""What takes the places of a model's modules that are on other ranks; see `ds_pipeline.hugging_face`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ds_pipeline.recompute import checkpointed

__all__ = ["HIDDEN", "Absent", "AbsentLayer", "Call", "Leave", "Recomputed", "with_hidden"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of a layer; the activation is the first, or has the name `HIDDEN`."""

HIDDEN = "hidden_states"
"""Name of what a layer takes, and of the activation among what goes from stage to stage."""


class Leave(Exception):
    """Leaves a model's forward with the activation of a stage's last layer."""

    def __init__(self, hidden: torch.Tensor) -> None:
        super().__init__()
        self.hidden: torch.Tensor = hidden


class Absent(nn.Module):
    """In the place of a module whose parameters are on other ranks; gives what it was given, or zero for a look-up."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._is_lookup: bool = isinstance(module, nn.Embedding)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]
        floating = [value for value in tensors if value.is_floating_point()]
        if floating and not self._is_lookup:
            return floating[0]
        return torch.zeros((), device=tensors[0].device if tensors else None)


class AbsentLayer(nn.Module):
    """In the place of a layer that is on another rank, or in another stage.

    Args:
        layer: whose plain attributes the model may ask for.
        returns: see `Anatomy.returns`.
    """

    def __init__(self, layer: nn.Module, returns: int) -> None:
        super().__init__()
        kinds = (str, int, float, bool, type(None))
        self.__dict__.update({k: v for k, v in vars(layer).items() if isinstance(v, kinds) and k not in vars(self)})
        self._returns: int = returns
        self.is_exit: bool = False
        self.entering: torch.Tensor | None = None
        """What a stage begins with, in the stand-in before its first layer while it runs."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden: torch.Tensor = args[0] if args else kwargs[HIDDEN]
        if self.is_exit:
            raise Leave(hidden)
        if self.entering is not None:
            hidden = self.entering
        return (hidden, *[None] * (self._returns - 1)) if self._returns else hidden


class Recomputed(nn.Module):
    """A layer that runs again in backward, in one go with others of its group. It does not own the layer.

    A model calls its layers one after the other and hands on what they give. All of a group but the last give back what
    they were given, and note with what they were called; the last runs them all. See Note [How a stage runs].

    Args:
        layer: the layer.
        group: stand-ins of the layers of its group, to which this one is added, in the order of the model.
        returns: see `Anatomy.returns`.
    """

    def __init__(self, layer: nn.Module, group: list[Recomputed], returns: int) -> None:
        super().__init__()
        group.append(self)
        self.__dict__.update(_layer=layer, _group=group, _returns=returns, _called=((), {}))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._layer(*args, **kwargs)
        self.__dict__["_called"] = args, kwargs
        hidden: torch.Tensor = args[0] if args else kwargs[HIDDEN]
        if self is not self._group[-1]:
            return (hidden, *[None] * (self._returns - 1)) if self._returns else hidden
        calls = [(one._layer, one.__dict__.pop("_called")) for one in self._group]
        return checkpointed(_run_calls, calls, hidden)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_layer"], name)


def with_hidden(call: Call, hidden: Any) -> Call:
    """`call` with another activation."""
    args, kwargs = call
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, HIDDEN: hidden})


def _run_calls(calls: list[tuple[nn.Module, Call]], hidden: torch.Tensor) -> Any:
    output: Any = hidden
    for layer, call in calls:
        given, named = with_hidden(call, output[0] if isinstance(output, tuple) else output)
        output = layer(*given, **named)
    return output
