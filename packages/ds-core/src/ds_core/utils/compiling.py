"""Whether torch compiles here, and functions it shall leave alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["disable", "enable", "is_compile_supported", "is_compiling", "required_torch_version"]

F = TypeVar("F", bound=Callable[..., Any])


def required_torch_version(min_version: float | None = None, max_version: float | None = None) -> bool:
    """Whether the installed torch is within both bounds, each given as major.minor."""
    found = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    low = (0, 0) if min_version is None else _pair(min_version)
    return low <= found and (max_version is None or found <= _pair(max_version))


def _pair(version: float) -> tuple[int, int]:
    major, _, minor = str(version).partition(".")
    return int(major), int(minor or 0)


def is_compile_supported() -> bool:
    """Whether ``torch.compile`` exists: always, for every torch these wheels take."""
    return hasattr(torch, "compile")


def is_compiling() -> bool:
    """Whether torch is compiling this call."""
    return torch.compiler.is_compiling()


def disable(func: F) -> F:
    """`func`, which torch.compile leaves as it is."""
    return torch.compiler.disable(func)  # type: ignore[no-any-return] # torch's own


def enable(min_version: float | None = None) -> Callable[[F], F]:
    """A decorator that leaves a function open to torch.compile from torch `min_version` on."""
    return (lambda func: func) if required_torch_version(min_version=min_version) else disable
