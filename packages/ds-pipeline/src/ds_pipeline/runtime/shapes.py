"""What goes from stage to stage: a tensor, a tuple of tensors, or tensors by name; and how the receiver is told."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from ds_pipeline.errors import PipelineError

__all__ = ["Layout", "Leaf", "decode", "describe", "encode"]


class Leaf(NamedTuple):
    """One tensor: its shape, its dtype as torch writes it without prefix, and whether a gradient comes back for it."""

    shape: tuple[int, ...]
    dtype: str
    has_gradient: bool

    def empty(self, device: torch.device) -> torch.Tensor:
        """Room for it."""
        return torch.empty(self.shape, dtype=getattr(torch, self.dtype), device=device)


@dataclass(frozen=True, slots=True)
class Layout:
    """The tensors of one message.

    Attributes:
        kind: "tensor", "tuple" or "dict".
        keys: names, in a dict.
        leaves: in order; None for a None among them.
    """

    kind: str
    keys: tuple[str, ...]
    leaves: tuple[Leaf | None, ...]

    @property
    def tensors(self) -> tuple[Leaf, ...]:
        """The leaves that are tensors."""
        return tuple(leaf for leaf in self.leaves if leaf is not None)

    @property
    def gradients(self) -> tuple[Leaf, ...]:
        """The leaves a gradient comes back for."""
        return tuple(leaf for leaf in self.tensors if leaf.has_gradient)

    def join(self, tensors: list[torch.Tensor]) -> Any:
        """The message, made of its tensors."""
        rest = iter(tensors)
        values = [None if leaf is None else next(rest) for leaf in self.leaves]
        if self.kind == "tensor":
            return values[0]
        return tuple(values) if self.kind == "tuple" else dict(zip(self.keys, values, strict=True))

    def __str__(self) -> str:
        shown = [
            "None" if leaf is None else f"{leaf.dtype}[{', '.join(str(size) for size in leaf.shape)}]"
            for leaf in self.leaves
        ]
        if self.kind == "dict":
            shown = [f"{key}: {leaf}" for key, leaf in zip(self.keys, shown, strict=True)]
        return shown[0] if self.kind == "tensor" else f"({', '.join(shown)})"


def describe(value: Any, what: str) -> tuple[Layout, list[torch.Tensor]]:
    """The layout of a message and its tensors.

    Raises:
        PipelineError: it is nothing that can be sent; `what` says whose.
    """
    kind: str
    keys: tuple[str, ...] = ()
    values: list[Any]
    if isinstance(value, torch.Tensor):
        kind, values = "tensor", [value]
    elif isinstance(value, tuple | list):
        kind, values = "tuple", list(value)
    elif isinstance(value, dict):
        kind, keys, values = "dict", tuple(value), list(value.values())
    else:
        kind, values = "", [value]
    wrong = [each for each in values if each is not None and not isinstance(each, torch.Tensor)]
    if wrong or not kind:
        raise PipelineError(
            f"{what} gave {type(value).__name__}"
            + (f" with {type(wrong[0]).__name__}" if kind else "")
            + "; what goes "
            "from stage to stage must be a tensor or a tuple of tensors"
        )
    leaves = tuple(None if each is None else _leaf(each) for each in values)
    return Layout(kind, keys, leaves), [each for each in values if each is not None]


def _leaf(tensor: torch.Tensor) -> Leaf:
    return Leaf(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.requires_grad)


def encode(layout: Layout) -> torch.Tensor:
    """The layout as bytes."""
    leaves = [None if leaf is None else [list(leaf.shape), leaf.dtype, leaf.has_gradient] for leaf in layout.leaves]
    text = json.dumps([layout.kind, list(layout.keys), leaves], separators=(",", ":"))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def decode(data: torch.Tensor) -> Layout:
    """The layout that `encode` wrote."""
    kind, keys, leaves = json.loads(data.cpu().numpy().tobytes())
    return Layout(
        kind,
        tuple(keys),
        tuple(None if leaf is None else Leaf(tuple(leaf[0]), leaf[1], leaf[2]) for leaf in leaves),
    )
