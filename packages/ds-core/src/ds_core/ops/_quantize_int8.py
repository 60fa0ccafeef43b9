"""quantize_int8 and dequantize_int8: symmetric, by groups of consecutive elements."""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_shape, name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "dequantize_int8", "quantize_int8"]

LIMIT = 127.0


def quantize_int8(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scales): `x` as int8 with one float32 scale for every `group_size` elements in memory order of a dense `x`.

    ``scale = amax / 127`` and ``q = round_half_even(x / scale)``, at most 127 in magnitude; a group of zeros has scale
    1. A group with an infinity or NaN has such a scale too and dequantizes to NaN. The last group may be shorter.

    Args:
        x: float32, bfloat16 or float16, any shape and strides.
        group_size: elements that share a scale, 1 or more.

    Returns:
        q: int8, dense, shaped like `x`.
        scales: [ceil(numel / group_size)] float32.

    Raises:
        OpError: the dtype or `group_size` does not fit.
    """
    call = torch.ops.ds.quantize_int8 if not is_plain(x) else _quantize
    q, scales = call(x, group_size)
    return q, scales


def dequantize_int8(
    q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """``q * scale`` of each group, rounded once to `dtype` (float32, bfloat16 or float16); dense, shaped like `q`.

    Raises:
        OpError: a shape, dtype or `group_size` does not fit.
    """
    call = torch.ops.ds.dequantize_int8 if not is_plain(q) else _dequantize
    x: torch.Tensor = call(q, scales, group_size, dtype)
    return x


def _quantize(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    q, scales = run(DEFINITIONS[0], x, group_size)
    return q, scales


def _dequantize(q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype) -> torch.Tensor:
    x: torch.Tensor = run(DEFINITIONS[1], q, scales, group_size, dtype)
    return x


def _check_group_size(op: str, group_size: int) -> None:
    if group_size < 1:
        raise OpError(f"{op}: group_size must be 1 or more, got {group_size}.")


def _check_quantize(x: torch.Tensor, group_size: int) -> None:
    expect_dtype("quantize_int8", "x", x)
    _check_group_size("quantize_int8", group_size)


def _check_dequantize(q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype) -> None:
    op = "dequantize_int8"
    expect_dtype(op, "q", q, (torch.int8,))
    expect_dtype(op, "scales", scales, (torch.float32,))
    _check_group_size(op, group_size)
    expect_shape(op, "scales", scales, (_groups(q, group_size),), f"one scale for every {group_size} elements of q")
    expect_device(op, "scales", scales, "q", q.device)
    if dtype not in FLOATS:
        raise OpError(f"{op}: dtype must be {', '.join(name_of(d) for d in FLOATS)}, got {name_of(dtype)}.")


def _groups(x: torch.Tensor, group_size: int) -> int:
    return (x.numel() + group_size - 1) // group_size


def _padded(x: torch.Tensor, group_size: int) -> torch.Tensor:
    """[groups, group_size] float32, the last group filled up with zeros."""
    flat = x.contiguous().view(-1).float()
    return torch.nn.functional.pad(flat, (0, -x.numel() % group_size)).view(_groups(x, group_size), group_size)


def _reference_quantize(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        groups = _padded(x.detach(), group_size)
        scales = groups.abs().amax(1) / LIMIT
        scales = torch.where(scales == 0, 1.0, scales)
        q = (groups / scales.unsqueeze(1)).round().clamp(-LIMIT, LIMIT)
        q = torch.where(scales.isfinite().unsqueeze(1), q, 0.0).to(torch.int8)
        return q.view(-1)[: x.numel()].view(x.shape).clone(), scales


def _reference_dequantize(q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype) -> torch.Tensor:
    values = _padded(q, group_size) * scales.unsqueeze(1)
    return values.view(-1)[: q.numel()].view(q.shape).to(dtype, copy=True)


def _fake_quantize(x: torch.Tensor, group_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    q = torch.empty_like(x, dtype=torch.int8, memory_format=torch.contiguous_format)
    return q, x.new_empty((_groups(x, group_size),), dtype=torch.float32)


def _fake_dequantize(q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(q, dtype=dtype, memory_format=torch.contiguous_format)


_SHAPES = (
    ("even", (8, 256), 256, Layout.CONTIGUOUS),
    ("short_last_group", (1000,), 96, Layout.CONTIGUOUS),
    ("one_group", (77,), 4096, Layout.CONTIGUOUS),
    ("groups_of_one", (19,), 1, Layout.CONTIGUOUS),
    ("large_group", (5, 2003), 5000, Layout.CONTIGUOUS),
    ("empty", (0, 3), 64, Layout.CONTIGUOUS),
    ("scalar", (), 64, Layout.CONTIGUOUS),
    ("transposed", (30, 50), 64, Layout.TRANSPOSED),
    ("strided", (30, 50), 64, Layout.STRIDED),
    ("unaligned", (999,), 32, Layout.OFFSET),
)
_QUANTIZE_CASES = (
    *(
        OpCase(f"{name}_{dtype}", {"x": TensorSpec(shape, dtype, layout=layout)}, {"group_size": group})
        for name, shape, group, layout in _SHAPES
        for dtype in ("float32", "bfloat16", "float16")
    ),
    OpCase("zeros", {"x": TensorSpec((300,), fill=Fill.ZEROS)}, {"group_size": 128}),
    OpCase("wide", {"x": TensorSpec((3000,), fill=Fill.WIDE)}, {"group_size": 64}),
    OpCase("special", {"x": TensorSpec((3000,), fill=Fill.SPECIAL)}, {"group_size": 64}),
    OpCase("tiny", {"x": TensorSpec((300,), scale=1e-44)}, {"group_size": 64}),
)
_DEQUANTIZE_CASES = tuple(
    OpCase(
        f"{name}_{dtype}",
        {
            "q": TensorSpec(shape, "int8", Fill.INTEGERS, layout=layout),
            "scales": TensorSpec((-(-torch.Size(shape).numel() // group),), "float32", Fill.SQUARES),
        },
        {"group_size": group, "dtype": dtype},
        exactness=Exactness(ulps=0),
    )
    for name, shape, group, layout in _SHAPES
    for dtype in ("float32", "bfloat16", "float16")
)

DEFINITIONS = (
    OpDefinition(
        schema="quantize_int8(Tensor x, int group_size) -> (Tensor, Tensor)",
        check=_check_quantize,
        reference=_reference_quantize,
        fake=_fake_quantize,
        autograd=None,
        cases=_QUANTIZE_CASES,
    ),
    OpDefinition(
        schema="dequantize_int8(Tensor q, Tensor scales, int group_size, ScalarType dtype) -> Tensor",
        check=_check_dequantize,
        reference=_reference_dequantize,
        fake=_fake_dequantize,
        autograd=None,
        cases=_DEQUANTIZE_CASES,
    ),
)
