"""What an op is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ds_core.ops.case import OpCase

__all__ = ["Autograd", "OpDefinition"]


@dataclass(frozen=True, slots=True)
class Autograd:
    """How gradients flow, as ``torch.library.register_autograd`` takes it."""

    backward: Callable[..., Any]
    setup_context: Callable[..., None]


@dataclass(frozen=True, slots=True)
class OpDefinition:
    """One op.

    Args:
        schema: for ``torch.library``, without the namespace.
        check: raises `OpError` when the arguments are not what the op takes; has the signature of the schema.
        reference: plain PyTorch, for any device; may rely on `check` having passed.
        fake: the outputs' shapes and dtypes.
        autograd: None when the op has no derivative.
        cases: conformance cases, data only.
        flops: for products of matrices: what they cost, from the shapes of the arguments, as torch's flop counter asks
            (``torch.utils.flop_counter.register_flop_formula``).
    """

    schema: str
    check: Callable[..., None]
    reference: Callable[..., Any]
    fake: Callable[..., Any]
    autograd: Autograd | None
    cases: tuple[OpCase, ...]
    flops: Callable[..., int] | None = None

    @property
    def name(self) -> str:
        """Name of the op, from the schema."""
        return self.schema.partition("(")[0]
