"""Rows moved by index."""

from __future__ import annotations

import torch

from ds_core.ops._gather_rows import expect_rising
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["TokenOps"]


class TokenOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._gather_rows = self.kernel("gather_rows")
        self._replace_rows = self.kernel("replace_rows")
        self._scatter_rows = self.kernel("scatter_rows")
        self._scatter_rows_backward = self.kernel("scatter_rows_backward")
        self._combine_rows = self.kernel("combine_rows")
        self._combine_rows_backward = self.kernel("combine_rows_backward")

    def gather_rows(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.gather_rows`."""
        x, index = x.contiguous(), index.contiguous()
        rows, columns = x.shape[index.dim() - 1], x.shape[index.dim() :]
        y = x.new_empty((*index.shape, *columns))
        try:
            self._gather_rows(
                x.device,
                batch=index.shape[:-1].numel(),
                rows=rows,
                taken=index.shape[-1],
                row_bytes=columns.numel() * x.element_size(),
                x=address(x),
                index=address(index),
                y=address(y),
            )
        except IndexError:
            expect_rows_exist("gather_rows", "index", index, rows)
            raise
        return y

    def replace_rows(self, base: torch.Tensor, x: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.replace_rows`."""
        base, index = base.contiguous(), index.contiguous()
        x = None if x is None else x.contiguous()
        rows = base.shape[index.dim() - 1]
        y = torch.empty_like(base)
        try:
            self._replace_rows(
                base.device,
                batch=index.shape[:-1].numel(),
                rows=rows,
                taken=index.shape[-1],
                row_bytes=base.shape[index.dim() :].numel() * base.element_size(),
                base=address(base),
                x=address(x),
                index=address(index),
                y=address(y),
            )
        except IndexError:
            expect_rows_exist("replace_rows", "index", index, rows)
            expect_rising("replace_rows", index)
            raise
        return y

    def scatter_rows(
        self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor | None, rows: int
    ) -> torch.Tensor:
        """See `ds_core.ops.scatter_rows`."""
        x, index = x.contiguous(), index.contiguous()
        weights = None if weights is None else weights.contiguous()
        columns = x.shape[index.dim() :]
        y = x.new_empty((*index.shape[:-1], rows, *columns))
        try:
            self._scatter_rows(
                x.device,
                dtype=code(x),
                weight_dtype=code(weights),
                batch=index.shape[:-1].numel(),
                rows=rows,
                taken=index.shape[-1],
                columns=columns.numel(),
                x=address(x),
                index=address(index),
                weights=address(weights),
                y=address(y),
            )
        except IndexError:
            expect_rows_exist("scatter_rows", "index", index, rows)
            raise
        return y

    def scatter_rows_backward(
        self, dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of x and weights."""
        dy, x, index, weights = dy.contiguous(), x.contiguous(), index.contiguous(), weights.contiguous()
        rows = dy.shape[index.dim() - 1]
        dx, dweights = torch.empty_like(x), torch.empty_like(weights)
        try:
            self._scatter_rows_backward(
                x.device,
                dtype=code(x),
                weight_dtype=code(weights),
                batch=index.shape[:-1].numel(),
                rows=rows,
                taken=index.shape[-1],
                columns=x.shape[index.dim() :].numel(),
                dy=address(dy),
                x=address(x),
                index=address(index),
                weights=address(weights),
                dx=address(dx),
                dweights=address(dweights),
            )
        except IndexError:
            expect_rows_exist("scatter_rows_backward", "index", index, rows)
            raise
        return dx, dweights

    def combine_rows(self, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """See `ds_core.ops.combine_rows`."""
        x, index, weights = x.contiguous(), index.contiguous(), weights.contiguous()
        y = x.new_empty((index.shape[0], x.shape[1]))
        try:
            self._combine_rows(
                x.device,
                dtype=code(x),
                weight_dtype=code(weights),
                rows=x.shape[0],
                tokens=index.shape[0],
                slots=index.shape[1],
                columns=x.shape[1],
                x=address(x),
                index=address(index),
                weights=address(weights),
                y=address(y),
            )
        except IndexError:
            expect_rows_exist("combine_rows", "index", index, x.shape[0], -1, " for no row")
            raise
        return y

    def combine_rows_backward(
        self, dy: torch.Tensor, x: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of x and weights."""
        dy, x, index, weights = dy.contiguous(), x.contiguous(), index.contiguous(), weights.contiguous()
        dx, dweights = torch.empty_like(x), torch.empty_like(weights)
        try:
            self._combine_rows_backward(
                x.device,
                dtype=code(x),
                weight_dtype=code(weights),
                rows=x.shape[0],
                tokens=index.shape[0],
                slots=index.shape[1],
                columns=x.shape[1],
                dy=address(dy),
                x=address(x),
                index=address(index),
                weights=address(weights),
                dx=address(dx),
                dweights=address(dweights),
            )
        except IndexError:
            expect_rows_exist("combine_rows_backward", "index", index, x.shape[0], -1, " for no row")
            raise
        return dx, dweights
