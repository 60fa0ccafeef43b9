"""`IndexedSource`: a `Source` over pieces of stored tensors; what all foreign formats become."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.foreign.pieces import Piece, flat_piece
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.errors import CheckpointError, did_you_mean

__all__ = ["IndexedSource"]


@dataclass(slots=True)
class _Logical:
    """A logical tensor: its dtype, shape and pieces."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)


class IndexedSource:
    """A checkpoint whose tensors are found by name in files of any layout.

    Args:
        path: the folder with the files.
        format: name of the format.
        strict: the source's `strict`.
    """

    def __init__(self, path: Path, format: str, strict: bool) -> None:
        self.path: Path = path
        self.format: str = format
        self.strict: bool = strict
        self.counters: Mapping[str, int] = {}
        self.client_state: dict[str, Any] = {}
        self.values: dict[str, Any] = {}
        self._tensors: dict[str, _Logical] = {}

    # ---- building

    def add(self, key: str, tensor: StoredTensor) -> None:
        """A logical tensor that is one stored one."""
        self.add_piece(key, tensor.dtype, tensor.shape, flat_piece(tensor.numel, 0, tensor.numel, tensor))

    def add_piece(self, key: str, dtype: torch.dtype, shape: Sequence[int], piece: Piece) -> None:
        """A piece of a logical tensor.

        Raises:
            CheckpointError: other pieces said another shape, or the piece does not fit in it.
        """
        known = self._tensors.setdefault(key, _Logical(dtype, tuple(shape)))
        if known.shape != tuple(shape) or math.prod(piece.frame) != math.prod(shape) or not piece.fits:
            raise CheckpointError(
                f"{piece.tensor.path} has a part of {key!r} that does not fit: {piece.size} at "
                f"{piece.offset} of {tuple(shape)}, elsewhere {known.shape}; the checkpoint is damaged"
            )
        known.pieces.append(piece)

    def alias(self, key: str, of: str) -> None:
        """Another name of the same logical tensor."""
        self._tensors[key] = self._tensors[of]

    def seal(self) -> None:
        """Checks that every tensor is whole.

        Raises:
            CheckpointError: elements are missing, or there twice.
        """
        for key, tensor in self._tensors.items():
            have, numel = sum(piece.numel for piece in tensor.pieces), math.prod(tensor.shape)
            if have != numel:
                state = "a file is missing" if have < numel else "some are there twice"
                raise CheckpointError(f"checkpoint {self.path} has {have} of the {numel} elements of {key!r}; {state}")

    # ---- reading

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def keys(self) -> Sequence[str]:
        """Names of all logical tensors."""
        return list(self._tensors)

    def shape(self, key: str) -> tuple[int, ...]:
        """Logical shape of `key`."""
        return self._find(key).shape

    def dtype(self, key: str) -> torch.dtype:
        """The dtype `key` had in training."""
        return self._find(key).dtype

    def read(self, key: str, out: torch.Tensor, start: int = 0) -> None:
        """Fills 1-D `out` with elements ``start <= i < start + out.numel()`` of `key`, cast to out's dtype.

        Raises:
            CheckpointError: some of these elements are in no file.
        """
        found = sum(piece.read(out, start) for piece in self._find(key).pieces)
        if found != out.numel():
            raise CheckpointError(
                f"checkpoint {self.path} has {found} of elements {start} to {start + out.numel()} of {key!r}, whose "
                f"shape is {self.shape(key)}"
            )

    def full(self, key: str) -> torch.Tensor:
        """The whole logical tensor in its dtype and shape."""
        out = torch.empty(math.prod(self.shape(key)), dtype=self.dtype(key))
        self.read(key, out)
        return out.view(self.shape(key))

    def value(self, name: str, default: Any = None) -> Any:
        """A JSON value."""
        return self.values.get(name, default)

    def verify(self, share: int = 0, shares: int = 1) -> None:
        """Does nothing: the format has no sums. That every tensor is whole was checked when it was opened."""

    def close(self) -> None:
        """Does nothing: files are open only while they are read."""

    def _find(self, key: str) -> _Logical:
        try:
            return self._tensors[key]
        except KeyError:
            raise CheckpointError(f"checkpoint {self.path} has no {key!r}.{did_you_mean(key, self._tensors)}") from None
