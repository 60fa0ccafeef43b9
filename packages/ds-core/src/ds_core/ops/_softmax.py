"""softmax: of scaled and masked rows, forward and backward."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_index, expect_like, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "softmax", "softmax_backward"]


def softmax(
    x: torch.Tensor,
    mask: torch.Tensor | None = None,
    lengths: torch.Tensor | None = None,
    *,
    scale: float = 1.0,
    causal: bool = False,
) -> torch.Tensor:
    """``softmax(x * scale + mask, -1)`` over the keys that each row may see; differentiable in `x`.

    Args:
        x: [..., queries, keys] (or [keys]), float32, bfloat16 or float16, any strides. Arithmetic is in float32.
        mask: added to the scaled values; float32, bfloat16 or float16, of a shape that expands to that of `x`.
        lengths: int64, one for each index of the first dimension of `x`: keys from there on are not seen.
        scale: multiplies `x`.
        causal: query i sees keys up to ``i + keys - queries``, so that the last query sees the last key.

    Returns:
        The probabilities, 0 for keys that are not seen. A row that sees nothing, or only -inf, is 0 throughout.

    Raises:
        OpError: a shape, dtype or device does not fit, or the mask requires a gradient.
    """
    if mask is not None and mask.requires_grad and torch.is_grad_enabled():
        raise OpError("softmax: mask requires a gradient, which this op does not give. Add it to x before the call.")
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and x.requires_grad):
        y = run(DEFINITIONS[0], x, mask, lengths, scale, causal)
    else:
        y = torch.ops.ds.softmax_forward(x, mask, lengths, scale, causal)
    return y


def softmax_backward(dy: torch.Tensor, y: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """``(dy - sum(dy * y, -1)) * y * scale``, the gradient of `softmax` with the result `y`."""
    dx: torch.Tensor
    dx = run(DEFINITIONS[1], dy, y, scale) if is_plain(dy) else torch.ops.ds.softmax_backward(dy, y, scale)
    return dx


def _check(
    x: torch.Tensor, mask: torch.Tensor | None, lengths: torch.Tensor | None, scale: float, causal: bool
) -> None:
    op = "softmax"
    expect_dtype(op, "x", x)
    if x.dim() < 1:
        raise OpError(f"{op}: x must have at least one dimension, got shape ().")
    if causal and x.dim() < 2:
        raise OpError(f"{op}: causal needs x [..., queries, keys], got shape {tuple(x.shape)}.")
    if mask is not None:
        expect_dtype(op, "mask", mask)
        expect_device(op, "mask", mask, "x", x.device)
        fits = mask.dim() <= x.dim() and all(
            m in (1, n) for m, n in zip(reversed(mask.shape), reversed(x.shape), strict=False)
        )
        if not fits:
            raise OpError(f"{op}: mask must expand to the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}.")
    if lengths is not None:
        if x.dim() < 2 or (causal and x.dim() < 3):
            raise OpError(f"{op}: lengths need a dimension before the queries, x has shape {tuple(x.shape)}.")
        expect_index(op, "lengths", lengths, "x", x.device)
        expect_shape(op, "lengths", lengths, x.shape[:1], "one for each index of the first dimension of x")


def _check_backward(dy: torch.Tensor, y: torch.Tensor, scale: float) -> None:
    expect_dtype("softmax_backward", "y", y)
    if y.dim() < 1:
        raise OpError("softmax_backward: y must have at least one dimension, got shape ().")
    expect_like("softmax_backward", "dy", dy, "y", y)


def _reference(
    x: torch.Tensor, mask: torch.Tensor | None, lengths: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    values = x.float().contiguous() * torch.tensor(scale, dtype=torch.float32, device=x.device)
    if mask is not None:
        values = values + mask.float()
    keys = torch.arange(x.shape[-1], device=x.device)
    if lengths is not None:
        unseen = keys >= lengths.view(-1, *(1 for _ in x.shape[1:]))
        values = values.masked_fill(unseen, -torch.inf)
    if causal:
        last = torch.arange(x.shape[-2], device=x.device) + (x.shape[-1] - x.shape[-2])
        values = values.masked_fill(keys > last.unsqueeze(-1), -torch.inf)
    if values.numel() == 0:
        return values.to(x.dtype)
    y = values.softmax(-1)
    return torch.where((values == -torch.inf).all(-1, keepdim=True), 0.0, y).to(x.dtype)


def _reference_backward(dy: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    gradient, values = dy.float().contiguous(), y.float().contiguous()
    along = (gradient * values).sum(-1, keepdim=True)
    return ((gradient - along) * values * torch.tensor(scale, dtype=torch.float32, device=y.device)).to(y.dtype)


def _fake(
    x: torch.Tensor, mask: torch.Tensor | None, lengths: torch.Tensor | None, scale: float, causal: bool
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_backward(dy: torch.Tensor, y: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.empty_like(y, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.scale = inputs[3]
    ctx.save_for_backward(output)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    (y,) = ctx.saved_tensors
    return torch.ops.ds.softmax_backward(dy, y, ctx.scale), None, None, None, None


_EXACTNESS = Exactness(ulps=8, relative=2e-6)


def _case(
    name: str,
    shape: tuple[int, ...],
    dtype: str = "float32",
    *,
    mask: tuple[tuple[int, ...], str] | None = None,
    lengths: int | None = None,
    **more: Any,
) -> OpCase:
    x = TensorSpec(
        shape, dtype, more.pop("fill", Fill.NORMAL), more.pop("spread", 3.0), more.pop("layout", Layout.CONTIGUOUS)
    )
    return OpCase(
        name,
        {
            "x": x,
            "mask": None if mask is None else TensorSpec(*mask),
            "lengths": None if lengths is None else TensorSpec(shape[:1], "int64", Fill.INDICES, lengths),
        },
        {"scale": 1.0, "causal": False, **more},
        exactness=_EXACTNESS,
    )


_SHAPES = (
    *((f"{dtype}", (2, 3, 5, 33), dtype) for dtype in ("float32", "bfloat16", "float16")),
    ("one_row", (1500,), "float32"),
    ("one_key", (7, 1), "float32"),
    ("no_keys", (3, 0), "float32"),
    ("no_rows", (0, 4), "bfloat16"),
    ("many_rows", (3000, 70), "float32"),
    ("longer_than_is_kept", (3, 9001), "bfloat16"),
)
_CASES = (
    *(_case(name, shape, dtype) for name, shape, dtype in _SHAPES),
    _case("scaled", (2, 3, 5, 33), scale=0.125),
    _case("causal", (2, 3, 40, 40), causal=True, scale=0.3),
    _case("causal_with_past", (2, 3, 5, 40), "bfloat16", causal=True),
    _case("causal_longer_queries", (2, 9, 4), causal=True),
    _case("causal_long", (2, 8300), "float32", causal=True),
    _case("lengths", (5, 3, 4, 21), lengths=25),
    _case("lengths_of_rows", (40, 21), "float16", lengths=22),
    _case("lengths_and_causal", (5, 3, 9, 21), lengths=22, causal=True),
    _case("mask_of_keys", (2, 3, 5, 33), mask=((33,), "float32")),
    _case("mask_of_batches", (2, 3, 5, 33), "bfloat16", mask=((2, 1, 1, 33), "bfloat16")),
    _case("mask_of_rows", (2, 3, 5, 33), mask=((2, 3, 5, 1), "float16")),
    _case("mask_full", (2, 3, 5, 33), "float16", mask=((2, 3, 5, 33), "float32"), lengths=34, causal=True),
    _case("mask_of_five_dimensions", (2, 2, 3, 5, 8), mask=((2, 1, 5, 8), "float32")),
    _case("mask_longer_than_is_kept", (2, 2, 8500), mask=((2, 1, 8500), "float32"), lengths=8501),
    _case("special", (30, 40), fill=Fill.SPECIAL),
    _case("large_values", (9, 65), spread=1e4),
    _case("zeros", (4, 100), fill=Fill.ZEROS),
    _case("transposed", (20, 30), layout=Layout.TRANSPOSED),
    _case("strided", (9, 48), "bfloat16", layout=Layout.STRIDED),
    _case("unaligned", (9, 67), "bfloat16", layout=Layout.OFFSET),
)
_BACKWARD_CASES = tuple(
    OpCase(
        name,
        {"dy": TensorSpec(shape, dtype), "y": TensorSpec(shape, dtype, Fill.SQUARES, 0.3)},
        {"scale": 0.7},
        exactness=Exactness(ulps=4, relative=1e-5),
    )
    for name, shape, dtype in _SHAPES
)

DEFINITIONS = (
    OpDefinition(
        schema="softmax_forward(Tensor x, Tensor? mask, Tensor? lengths, float scale, bool causal) -> Tensor",
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=_CASES,
    ),
    OpDefinition(
        schema="softmax_backward(Tensor dy, Tensor y, float scale) -> Tensor",
        check=_check_backward,
        reference=_reference_backward,
        fake=_fake_backward,
        autograd=None,
        cases=_BACKWARD_CASES,
    ),
)
