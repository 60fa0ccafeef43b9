"""Tokens of many sequences without padding."""

from __future__ import annotations

import torch

from ds_core.ops._ragged_embed import TABLES
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["RaggedOps"]


class RaggedOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._ragged_embed = self.kernel("ragged_embed")

    def ragged_embed(
        self,
        weight: torch.Tensor,
        tokens: torch.Tensor,
        positions: torch.Tensor | None,
        position_weight: torch.Tensor | None,
        types: torch.Tensor | None,
        type_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """See `ds_core.ops.ragged_embed`."""
        tables = [t if t is None else t.contiguous() for t in (weight, position_weight, type_weight)]
        indices = [t if t is None else t.contiguous() for t in (tokens, positions, types)]
        rows = [0 if table is None else table.shape[0] for table in tables]
        y = weight.new_empty((tokens.shape[0], weight.shape[1]))
        try:
            self._ragged_embed(
                weight.device,
                dtype=code(weight),
                tokens=y.shape[0],
                columns=y.shape[1],
                vocabulary=rows[0],
                positions=rows[1],
                types=rows[2],
                weight=address(tables[0]),
                token=address(indices[0]),
                position_weight=address(tables[1]),
                position=address(indices[1]),
                type_weight=address(tables[2]),
                type=address(indices[2]),
                y=address(y),
            )
        except IndexError:
            for (name, _), index, count in zip(TABLES, indices, rows, strict=True):
                if index is not None:
                    expect_rows_exist("ragged_embed", name, index, count)
            raise
        return y
