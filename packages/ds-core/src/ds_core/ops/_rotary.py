"""rotary: rotary position embeddings, of queries and keys whose tokens have positions."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_device, expect_dtype, expect_index, expect_rows_exist, expect_shape
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "rotary", "rotary_", "rotary_tables"]


def rotary(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    """`x` with pairs of elements of each head turned by the angles of its token; differentiable in `x`.

    Args:
        x: [..., tokens, heads, head_dim], float32, bfloat16 or float16, any strides; pass ``x.transpose(1, 2)`` of
            [batch, heads, tokens, head_dim]. Arithmetic is in float32 with one rounding to the dtype.
        cos, sin: [positions known, rotary_dim / 2] float32, as from `rotary_tables`. The first rotary_dim elements of
            a head are turned, the others copied.
        positions: int64, [tokens], or one for each token of `x`: rows of the tables.
        interleaved: pairs are neighbours (2i, 2i + 1); otherwise element i goes with i + rotary_dim / 2.
        inverse: turns back, which is the gradient too.

    Raises:
        OpError: a shape, dtype or device does not fit, or a position has no row in the tables.

    Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021, eq. 34.
    """
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and x.requires_grad):
        y = run(DEFINITIONS[0], x, cos, sin, positions, interleaved, inverse)
    else:
        y = torch.ops.ds.rotary(x, cos, sin, positions, interleaved, inverse)
    return y


def rotary_(
    x: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    interleaved: bool = False,
    inverse: bool = False,
) -> torch.Tensor:
    """`rotary`, written over `x`, which is returned. Without a derivative.

    Raises:
        OpError: as `rotary`, or `x` requires a gradient.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        raise OpError("rotary_: x requires a gradient, and writing over it has none. Use rotary, or torch.no_grad().")
    if is_plain(x):
        run(DEFINITIONS[1], x, cos, sin, positions, interleaved, inverse)
    else:
        torch.ops.ds.rotary_(x, cos, sin, positions, interleaved, inverse)
    return x


def rotary_tables(
    rotary_dim: int, positions: int, base: float = 10_000.0, device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin) of ``position * base ** (-2 i / rotary_dim)``, each [positions, rotary_dim / 2] float32.

    Raises:
        OpError: `rotary_dim` is odd or below 2.
    """
    if rotary_dim < 2 or rotary_dim % 2:
        raise OpError(f"rotary_tables: rotary_dim must be even and 2 or more, got {rotary_dim}.")
    wide = torch.float64
    rates = base ** (-torch.arange(0, rotary_dim, 2, dtype=wide, device=device) / rotary_dim)
    angles = torch.outer(torch.arange(positions, dtype=wide, device=device), rates)
    return angles.cos().float(), angles.sin().float()


def _check(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, interleaved: bool, inverse: bool
) -> None:
    op = "rotary"
    if x.dim() < 3:
        raise OpError(f"{op}: x must be [..., tokens, heads, head_dim], got shape {tuple(x.shape)}.")
    expect_dtype(op, "x", x)
    for name, table in (("cos", cos), ("sin", sin)):
        expect_dtype(op, name, table, (torch.float32,))
        expect_device(op, name, table, "x", x.device)
    if cos.dim() != 2:
        raise OpError(f"{op}: cos must be [positions, rotary_dim / 2], got shape {tuple(cos.shape)}.")
    expect_shape(op, "sin", sin, cos.shape, "the shape of cos")
    if 2 * cos.shape[1] > x.shape[-1]:
        raise OpError(f"{op}: the tables turn {2 * cos.shape[1]} elements of a head, and a head has {x.shape[-1]}.")
    expect_index(op, "positions", positions, "x", x.device)
    if positions.shape not in (x.shape[:-2], x.shape[-3:-2]):
        raise OpError(
            f"{op}: positions must have shape {tuple(x.shape[-3:-2])} or {tuple(x.shape[:-2])}, the tokens of x, "
            f"got {tuple(positions.shape)}."
        )


def _reference(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, interleaved: bool, inverse: bool
) -> torch.Tensor:
    expect_rows_exist("rotary", "positions", positions, cos.shape[0])
    turned = 2 * cos.shape[1]
    c, s = cos[positions].unsqueeze(-2), sin[positions].unsqueeze(-2)
    s = -s if inverse else s
    values = x[..., :turned].float()
    first, second = (values[..., 0::2], values[..., 1::2]) if interleaved else values.chunk(2, -1)
    pair = first * c - second * s, second * c + first * s
    mixed = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((mixed.to(x.dtype), x[..., turned:]), -1)


def _reference_in_place(x: torch.Tensor, *arguments: Any, **named: Any) -> None:
    x.copy_(_reference(x, *arguments, **named))


def _fake(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, positions: torch.Tensor, interleaved: bool, inverse: bool
) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _fake_in_place(x: torch.Tensor, *arguments: Any, **named: Any) -> None:
    return None


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    _, cos, sin, positions, ctx.interleaved, ctx.inverse = inputs
    ctx.save_for_backward(cos, sin, positions)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    dx = torch.ops.ds.rotary(dy, *ctx.saved_tensors, ctx.interleaved, not ctx.inverse)
    return dx, None, None, None, None, None


def _case(
    name: str, shape: tuple[int, ...], half: int, dtype: str = "float32", *, shared: bool = False, **more: Any
) -> OpCase:
    known = 57
    table = TensorSpec((known, half))
    return OpCase(
        name,
        {
            "x": TensorSpec(shape, dtype, more.pop("fill", Fill.NORMAL), layout=more.pop("layout", Layout.CONTIGUOUS)),
            "cos": table,
            "sin": table,
            "positions": TensorSpec(shape[-3:-2] if shared else shape[:-2], "int64", Fill.INDICES, known),
        },
        {"interleaved": False, "inverse": False, **more},
        exactness=Exactness(ulps=0),
    )


_CASES = tuple(
    case
    for style, interleaved in (("halves", False), ("neighbours", True))
    for case in (
        *(
            _case(f"{style}_{dtype}", (2, 9, 3, 64), 32, dtype, interleaved=interleaved)
            for dtype in ("float32", "bfloat16", "float16")
        ),
        _case(f"{style}_partial", (2, 9, 3, 21), 5, "bfloat16", interleaved=interleaved),
        _case(f"{style}_inverse", (2, 9, 3, 20), 10, interleaved=interleaved, inverse=True),
        _case(f"{style}_shared_positions", (2, 9, 3, 20), 10, interleaved=interleaved, shared=True),
        _case(f"{style}_three_dimensions", (11, 2, 8), 3, interleaved=interleaved),
        _case(f"{style}_five_dimensions", (2, 2, 5, 2, 8), 4, interleaved=interleaved),
        _case(f"{style}_wide_head", (3, 2, 2500), 1100, interleaved=interleaved),
        _case(f"{style}_many_tokens", (2, 1501, 2, 8), 4, interleaved=interleaved),
        _case(f"{style}_transposed", (4, 6, 8), 4, layout=Layout.TRANSPOSED, interleaved=interleaved),
        _case(f"{style}_strided", (4, 6, 10), 4, "bfloat16", layout=Layout.STRIDED, interleaved=interleaved),
        _case(f"{style}_unaligned", (2, 5, 3, 18), 9, "float16", layout=Layout.OFFSET, interleaved=interleaved),
        _case(f"{style}_special", (2, 9, 3, 128), 64, fill=Fill.SPECIAL, interleaved=interleaved),
        _case(f"{style}_no_tokens", (2, 0, 3, 8), 4, interleaved=interleaved),
        _case(f"{style}_five_dimensions_no_tokens", (2, 2, 0, 2, 8), 4, interleaved=interleaved),
        _case(f"{style}_nothing_turned", (2, 4, 3, 8), 0, interleaved=interleaved),
    )
)

_SIGNATURE = "Tensor cos, Tensor sin, Tensor positions, bool interleaved, bool inverse"
DEFINITIONS = (
    OpDefinition(
        schema=f"rotary(Tensor x, {_SIGNATURE}) -> Tensor",
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=Autograd(_differentiate, _setup_context),
        cases=_CASES,
    ),
    OpDefinition(
        schema=f"rotary_(Tensor(a!) x, {_SIGNATURE}) -> ()",
        check=_check,
        reference=_reference_in_place,
        fake=_fake_in_place,
        autograd=None,
        cases=_CASES,
    ),
)
