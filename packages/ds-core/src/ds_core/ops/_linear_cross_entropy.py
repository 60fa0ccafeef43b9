"""linear_cross_entropy: the loss of a linear layer's output that never exists as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops._cross_entropy import check_reduction, counted, cross_entropy, cross_entropy_
from ds_core.ops.checks import expect_device, expect_dtype, expect_index, expect_rows_exist, expect_shape, name_of

__all__ = ["TILE_BYTES", "linear_cross_entropy", "tile_tokens_for"]

TILE_BYTES = 64 * 2**20
"""Logits of a tile by default."""


@dataclass(frozen=True, slots=True)
class _Options:
    ignore_index: int
    label_smoothing: float
    z_loss: float
    reduction: str
    tile_tokens: int
    differentiate: bool

    @property
    def of_loss(self) -> tuple[int, float, float]:
        return self.ignore_index, self.label_smoothing, self.z_loss


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    tile_tokens: int | None = None,
) -> torch.Tensor:
    """``cross_entropy(hidden @ weight.T, target)``, tile by tile of tokens; differentiable in `hidden` and `weight`.

    Note [Memory of a tiled loss]
        At no time are there logits of more than one tile: ``tile_tokens * classes`` elements in the dtype of `hidden`.
        The gradients are computed in the forward pass, while a tile's logits are there (which saves computing them
        again): one tensor like `hidden` and one like `weight`, kept until the backward pass, only where they are
        wanted. For a low-precision `weight` the sum over the tiles is kept in float32 and one product of the tile,
        ``classes * dim`` in the dtype of `weight`, lives beside it. The backward pass allocates nothing.

    Args:
        hidden: [..., dim], float32, bfloat16 or float16.
        weight: [classes, dim], dtype as `hidden`.
        target: [...] int64, class numbers or `ignore_index`.
        reduction: ``"mean"`` over the rows that count, or ``"sum"``.
        tile_tokens: rows of logits at a time; None takes as many as fit in `TILE_BYTES`.

    Returns:
        A 0-dim float32 tensor. The products run in torch's matrix multiplication and round to the dtype of `hidden`;
        the loss of the rounded logits is computed in float32.

    Raises:
        OpError: a shape, dtype, option or class number does not fit.
    """
    _check(hidden, weight, target)
    check_reduction("linear_cross_entropy", reduction, ("mean", "sum"))
    if tile_tokens is not None and tile_tokens < 1:
        raise OpError(f"linear_cross_entropy: tile_tokens must be 1 or more, got {tile_tokens}.")
    tile = tile_tokens or tile_tokens_for(weight.shape[0], hidden.element_size())
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    options = _Options(ignore_index, label_smoothing, z_loss, reduction, tile, wanted)
    loss: torch.Tensor = _Tiled.apply(hidden, weight, target, options)  # type: ignore[no-untyped-call]
    return loss


def tile_tokens_for(classes: int, element_bytes: int) -> int:
    """Rows of logits that fit in `TILE_BYTES`, at least 16."""
    return max(16, TILE_BYTES // max(classes * element_bytes, 1))


def _check(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> None:
    op = "linear_cross_entropy"
    expect_dtype(op, "hidden", hidden)
    if hidden.dim() < 1 or weight.dim() != 2 or 0 in (*weight.shape, hidden.shape[-1]):
        raise OpError(
            f"{op}: hidden must be [..., dim] and weight [classes, dim], neither empty, got {tuple(hidden.shape)} "
            f"and {tuple(weight.shape)}."
        )
    expect_shape(op, "weight", weight, (weight.shape[0], hidden.shape[-1]), "classes, the last dimension of hidden")
    expect_device(op, "weight", weight, "hidden", hidden.device)
    if weight.dtype != hidden.dtype:
        raise OpError(f"{op}: weight must be {name_of(hidden.dtype)} like hidden, got {name_of(weight.dtype)}.")
    expect_index(op, "target", target, "hidden", hidden.device)
    expect_shape(op, "target", target, hidden.shape[:-1], "the rows of hidden")


class _Tiled(torch.autograd.Function):
    """Note [Memory of a tiled loss]."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor, options: _Options
    ) -> torch.Tensor:
        rows, classes = hidden.reshape(-1, hidden.shape[-1]), target.reshape(-1)
        # All of them before the first tile, so that an error comes before the work.
        expect_rows_exist(
            "linear_cross_entropy", "target", classes, weight.shape[0], options.ignore_index, " (ignore_index)"
        )
        count = counted(classes, options.ignore_index) if options.reduction == "mean" else None
        factor = 1.0 if count is None else 1.0 / max(count.item(), 1.0)
        wanted = [options.differentiate and needed for needed in ctx.needs_input_grad[:2]]
        sums = _Gradients(rows, weight, *wanted)
        tile = rows.new_empty((min(options.tile_tokens, rows.shape[0]), weight.shape[0]))
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for first in range(0, rows.shape[0], options.tile_tokens):
            part = slice(first, first + options.tile_tokens)
            logits = tile[: rows[part].shape[0]]
            torch.mm(rows[part], weight.t(), out=logits)
            if sums.wanted:
                total += cross_entropy_(logits, classes[part], factor, *options.of_loss).sum()
                sums.add(part, logits)
            else:
                total += cross_entropy(
                    logits,
                    classes[part],
                    ignore_index=options.ignore_index,
                    label_smoothing=options.label_smoothing,
                    z_loss=options.z_loss,
                    reduction="sum",
                )
        ctx.save_for_backward(*sums.results(hidden.shape))
        return total if count is None else total / count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        dhidden, dweight = ctx.saved_tensors
        if gradients[0].item() != 1.0:
            for gradient in (dhidden, dweight):
                if gradient is not None:
                    gradient.mul_(gradients[0])
        return dhidden, dweight, None, None


class _Gradients:
    """Of hidden and weight, summed over the tiles."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, of_hidden: bool, of_weight: bool) -> None:
        self.hidden: torch.Tensor = hidden
        self.weight: torch.Tensor = weight
        self.wanted: bool = of_hidden or of_weight
        self.dhidden: torch.Tensor | None = hidden.new_empty(hidden.shape) if of_hidden else None
        self.dweight: torch.Tensor | None = torch.zeros_like(weight, dtype=torch.float32) if of_weight else None

    def add(self, part: slice, dlogits: torch.Tensor) -> None:
        """Adds a tile's share."""
        if self.dhidden is not None:
            torch.mm(dlogits, self.weight, out=self.dhidden[part])
        if self.dweight is None:
            return
        if self.weight.dtype == torch.float32:
            self.dweight.addmm_(dlogits.t(), self.hidden[part])
        else:
            self.dweight += dlogits.t() @ self.hidden[part]

    def results(self, shape: torch.Size) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """In the dtypes of the arguments."""
        dhidden = None if self.dhidden is None else self.dhidden.view(shape)
        return dhidden, None if self.dweight is None else self.dweight.to(self.weight.dtype)
