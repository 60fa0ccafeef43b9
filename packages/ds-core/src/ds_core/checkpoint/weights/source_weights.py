"""Which tensors of a checkpoint make up the model's weights, and which copy of each is read.

Note [Which copy]
    Mixed precision keeps two copies: what the model computes with, and a finer master that the optimizer updates. The
    model's own is taken where its dtype is the one asked for, or none is; else the master, where there is one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from ds_core.checkpoint.source import Source
from ds_core.errors import CheckpointError

__all__ = ["BLOCK_NUMEL", "FLOATS", "Weight", "read_blocks", "tied_names", "weights_of"]

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
"""Dtypes that may be rounded to another of them; 8-bit formats and integers stay as they are."""

BLOCK_NUMEL = 4 << 20
"""Elements that are in memory at a time."""

MODEL = "model/"
MASTER = "optimizer/master/"


class Weight(NamedTuple):
    """A parameter or buffer: its name, the tensor it is read from, the dtype it shall have, its shape."""

    name: str
    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)


def weights_of(
    source: Source, dtype: torch.dtype | Mapping[str, torch.dtype] | None, *, exclude_frozen: bool = False
) -> list[Weight]:
    """The weights in a checkpoint, in its order; see Note [Which copy]. Reads no elements.

    A parameter of several names is there once, under the one that `tied_names` tells.

    Args:
        source: the checkpoint.
        dtype: of floating-point tensors; by name for a mapping, which may leave some out; None keeps the saved one.
        exclude_frozen: leave out parameters that were not trained.

    Raises:
        CheckpointError: there are no weights, or the checkpoint does not say which parameters are frozen.
    """
    listed = source.keys()
    keys = set(listed)
    names = [key.removeprefix(MODEL) for key in listed if key.startswith(MODEL)]
    if not names:
        raise CheckpointError(f"{source.path} ({source.format}) holds no weights: no tensor's name begins with {MODEL}")
    left_out = _frozen(source) if exclude_frozen else frozenset()
    left_out |= {alias for alias, name in tied_names(source).items() if MODEL + name in keys}
    found = []
    for name in names:
        if name in left_out:
            continue
        key, saved = MODEL + name, source.dtype(MODEL + name)
        wanted = dtype.get(name) if isinstance(dtype, Mapping) else dtype
        if wanted is None or saved not in FLOATS:
            wanted = saved
        shape = source.shape(key)
        if wanted != saved and MASTER + name in keys and source.shape(MASTER + name) == shape:
            key = MASTER + name
        found.append(Weight(name, key, wanted, shape))
    return found


def tied_names(source: Source) -> dict[str, str]:
    """Further names of parameters that have several: name to the one that counts. The source may have it under both."""
    return {str(alias): str(name) for alias, name in _module(source).get("tied", {}).items()}


def read_blocks(source: Source, weight: Weight, take: Callable[[torch.Tensor, int], Any]) -> None:
    """Calls `take` with one block after the other, 1-D in the weight's dtype, and its first element's number.

    A block is good until `take` returns.
    """
    buffer = torch.empty(min(BLOCK_NUMEL, weight.numel), dtype=weight.dtype)
    for start in range(0, weight.numel, BLOCK_NUMEL):
        block = buffer[: min(BLOCK_NUMEL, weight.numel - start)]
        source.read(weight.key, block, start)
        take(block, start)


def _module(source: Source) -> Mapping[str, Any]:
    value = source.value("module")
    return value if isinstance(value, dict) else {}


def _frozen(source: Source) -> frozenset[str]:
    frozen = _module(source).get("frozen")
    if frozen is None:
        raise CheckpointError(
            f"{source.path} ({source.format}) does not say which parameters were frozen; export it with them"
        )
    return frozenset(frozen)
