"""Rotary embeddings, gated activations and softmax."""

from __future__ import annotations

import torch

from ds_core.ops._gated_activation import KINDS
from ds_core.ops.calls.kernels import Kernels, Launcher, address, code, row_view
from ds_core.ops.checks import expect_rows_exist
from ds_core.ops.native import KernelLibrary

__all__ = ["ActivationOps"]


class ActivationOps(Kernels):
    """See `Kernels`."""

    def __init__(self, library: KernelLibrary, launcher: Launcher) -> None:
        super().__init__(library, launcher)
        self._rotary = self.kernel("rotary")
        self._gated_activation = self.kernel("gated_activation")
        self._gated_activation_backward = self.kernel("gated_activation_backward")
        self._softmax_forward = self.kernel("softmax_forward")
        self._softmax_backward = self.kernel("softmax_backward")

    def rotary(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        interleaved: bool,
        inverse: bool,
    ) -> torch.Tensor:
        """See `ds_core.ops.rotary`."""
        y = torch.empty_like(x, memory_format=torch.contiguous_format)
        self._turn(_dense_heads(x), cos, sin, positions, interleaved, inverse, y)
        return y

    def rotary_(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        interleaved: bool,
        inverse: bool,
    ) -> None:
        """See `ds_core.ops.rotary_`."""
        if _has_four_dimensions(x):
            self._turn(x, cos, sin, positions, interleaved, inverse, x)
        else:
            dense = x.contiguous()
            self._turn(dense, cos, sin, positions, interleaved, inverse, dense)
            x.copy_(dense)

    def _turn(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        positions: torch.Tensor,
        interleaved: bool,
        inverse: bool,
        y: torch.Tensor,
    ) -> None:
        if x.numel() == 0:
            expect_rows_exist("rotary", "positions", positions, cos.shape[0])
            return
        tokens_of_x = positions.expand(x.shape[:-2]).contiguous()
        four_x, four_y = _four_dimensions(x), _four_dimensions(y)
        cos, sin = cos.contiguous(), sin.contiguous()
        batch, tokens, heads, dim = four_x.shape
        try:
            self._rotary(
                x.device,
                dtype=code(x),
                interleaved=interleaved,
                inverse=inverse,
                batch=batch,
                tokens=tokens,
                heads=heads,
                dim=dim,
                half=cos.shape[1],
                table_rows=cos.shape[0],
                x_batch_stride=four_x.stride(0),
                x_token_stride=four_x.stride(1),
                x_head_stride=four_x.stride(2),
                y_batch_stride=four_y.stride(0),
                y_token_stride=four_y.stride(1),
                y_head_stride=four_y.stride(2),
                x=address(four_x),
                cos=address(cos),
                sin=address(sin),
                positions=address(tokens_of_x),
                y=address(four_y),
            )
        except IndexError:
            expect_rows_exist("rotary", "positions", positions, cos.shape[0])
            raise

    def gated_activation(self, gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
        """See `ds_core.ops.gated_activation`."""
        y = torch.empty_like(gate, memory_format=torch.contiguous_format)
        if gate.is_contiguous() and up.is_contiguous():
            gate, up = gate.view(1, -1), up.view(1, -1)  # one long row splits best
        gates, ups = row_view(gate), row_view(up)
        self._activate(gates, ups, kind, y)
        return y

    def gated_activation_packed(self, x: torch.Tensor, kind: str) -> torch.Tensor:
        """See `ds_core.ops.gated_activation_packed`."""
        half = x.shape[-1] // 2
        y = x.new_empty((*x.shape[:-1], half))
        rows = row_view(x)
        self._activate(rows[:, :half], rows[:, half:], kind, y)
        return y

    def _activate(self, gates: torch.Tensor, ups: torch.Tensor, kind: str, y: torch.Tensor) -> None:
        self._gated_activation(
            gates.device,
            dtype=code(y),
            kind=KINDS[kind],
            rows=gates.shape[0],
            columns=gates.shape[1],
            gate_stride=gates.stride(0),
            up_stride=ups.stride(0),
            gate=address(gates),
            up=address(ups),
            y=address(y),
        )

    def gated_activation_backward(
        self, dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gradients of gate and up."""
        dgate, dup = (torch.empty_like(gate, memory_format=torch.contiguous_format) for _ in range(2))
        rows = row_view(gate)
        shape = rows.shape
        if gate.is_contiguous() and up.is_contiguous():
            shape = torch.Size((1, gate.numel()))
        gates, ups = (rows, row_view(up)) if shape == rows.shape else (gate.view(shape), up.view(shape))
        self._differentiate(dy.contiguous(), gates, ups, kind, dgate.view(shape), dup.view(shape))
        return dgate, dup

    def gated_activation_packed_backward(self, dy: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
        """Gradient of x."""
        half = x.shape[-1] // 2
        dx = torch.empty_like(x, memory_format=torch.contiguous_format)
        rows, drows = row_view(x), row_view(dx)
        parts = (rows[:, :half], rows[:, half:]), (drows[:, :half], drows[:, half:])
        self._differentiate(dy.contiguous(), *parts[0], kind, *parts[1])
        return dx

    def _differentiate(
        self,
        dy: torch.Tensor,
        gates: torch.Tensor,
        ups: torch.Tensor,
        kind: str,
        dgates: torch.Tensor,
        dups: torch.Tensor,
    ) -> None:
        self._gated_activation_backward(
            gates.device,
            dtype=code(dy),
            kind=KINDS[kind],
            rows=gates.shape[0],
            columns=gates.shape[1],
            gate_stride=gates.stride(0),
            up_stride=ups.stride(0),
            dgate_stride=dgates.stride(0),
            dup_stride=dups.stride(0),
            dy=address(dy),
            gate=address(gates),
            up=address(ups),
            dgate=address(dgates),
            dup=address(dups),
        )

    def softmax_forward(
        self,
        x: torch.Tensor,
        mask: torch.Tensor | None,
        lengths: torch.Tensor | None,
        scale: float,
        causal: bool,
    ) -> torch.Tensor:
        """See `ds_core.ops.softmax`."""
        x = x.contiguous()
        y = torch.empty_like(x)
        shape = _attention_shape(x.shape, causal)
        if mask is not None:
            mask = mask if mask.shape[-1:] == x.shape[-1:] else mask.expand(*mask.shape[:-1], *x.shape[-1:])
            mask = mask if mask.stride(-1) == 1 or mask.shape[-1] < 2 else mask.contiguous()
            mask = mask.expand(x.shape).reshape(shape)
        lengths = None if lengths is None else lengths.contiguous()
        strides = (0, 0, 0, 0) if mask is None else mask.stride()
        self._softmax_forward(
            x.device,
            dtype=code(x),
            mask_dtype=code(mask),
            causal=causal,
            outer=shape[0],
            middle=shape[1],
            queries=shape[2],
            keys=shape[3],
            mask_outer_stride=strides[0],
            mask_middle_stride=strides[1],
            mask_query_stride=strides[2],
            x=address(x),
            mask=address(mask),
            lengths=address(lengths),
            y=address(y),
            scale=scale,
        )
        return y

    def softmax_backward(self, dy: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
        """See `ds_core.ops.softmax_backward`."""
        dy, y = dy.contiguous(), y.contiguous()
        dx = torch.empty_like(y)
        columns = y.shape[-1]
        self._softmax_backward(
            y.device,
            dtype=code(y),
            rows=y.numel() // columns if columns else 0,
            columns=columns,
            dy=address(dy),
            y=address(y),
            dx=address(dx),
            scale=scale,
        )
        return dx


def _has_four_dimensions(x: torch.Tensor) -> bool:
    """Whether `_four_dimensions` is a view of `x` with dense heads."""
    return x.stride(-1) == 1 and x.dim() <= 4


def _dense_heads(x: torch.Tensor) -> torch.Tensor:
    return x if _has_four_dimensions(x) else x.contiguous()


def _four_dimensions(x: torch.Tensor) -> torch.Tensor:
    """[batch, tokens, heads, dim] of [..., tokens, heads, dim]."""
    if x.dim() == 4:
        return x
    return x.unsqueeze(0) if x.dim() == 3 else x.view(x.shape[:-3].numel(), *x.shape[-3:])


def _attention_shape(shape: torch.Size, causal: bool) -> tuple[int, int, int, int]:
    """(outer, middle, queries, keys); without `causal` the rows of a matrix are outer, so that each has its length."""
    if len(shape) == 1:
        return 1, 1, 1, shape[0]
    if len(shape) == 2:
        return (1, 1, shape[0], shape[1]) if causal else (shape[0], 1, 1, shape[1])
    return shape[0], torch.Size(shape[1:-2]).numel(), shape[-2], shape[-1]
