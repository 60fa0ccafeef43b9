"""sum_of_squares: what a gradient norm is made of; the same bits for any number of threads."""

from __future__ import annotations

import torch

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_flat
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run
from ds_core.ops.wide import wide_dtype

__all__ = ["DEFINITIONS", "sum_of_squares"]

CHUNK = 1 << 20


def sum_of_squares(x: torch.Tensor) -> torch.Tensor:
    """The sum of squares of a 1-D dense float32, bfloat16 or float16 tensor, as a 0-dim tensor.

    Accumulated and returned in float64 (float32 on devices that lack it), over fixed blocks, so the result does not
    depend on the number of threads, and hardly on how a vector is cut into pieces that are added up later. Infinities
    and NaNs come through. Has no derivative.

    Raises:
        OpError: `x` is of another shape or dtype.
    """
    if is_plain(x):
        result: torch.Tensor = run(DEFINITIONS[0], x)
        return result
    traced: torch.Tensor = torch.ops.ds.sum_of_squares(x)
    return traced


def _check(x: torch.Tensor) -> None:
    expect_flat("sum_of_squares", "x", x)
    expect_dtype("sum_of_squares", "x", x)


def _reference(x: torch.Tensor) -> torch.Tensor:
    wide = wide_dtype(x.device)
    with torch.no_grad():
        total = torch.zeros((), dtype=wide, device=x.device)
        for first in range(0, x.numel(), CHUNK):
            total += x[first : first + CHUNK].to(wide).square().sum()
        return total


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty((), dtype=wide_dtype(x.device))


def _case(name: str, numel: int, dtype: str, fill: Fill = Fill.NORMAL, layout: Layout = Layout.CONTIGUOUS) -> OpCase:
    return OpCase(name, {"x": TensorSpec((numel,), dtype, fill, layout=layout)}, exactness=Exactness(ulps=64))


_CASES = (
    *(
        _case(f"{dtype}_{numel}", numel, dtype)
        for dtype in ("float32", "bfloat16", "float16")
        for numel in (0, 1, 15, 17, 1024, 65_536, 65_537, 200_003)
    ),
    _case("wide", 70_001, "float32", Fill.WIDE),
    _case("special", 70_001, "float32", Fill.SPECIAL),
    _case("zeros", 1025, "bfloat16", Fill.ZEROS),
    _case("unaligned", 70_001, "float16", layout=Layout.OFFSET),
)

DEFINITIONS = (
    OpDefinition(
        schema="sum_of_squares(Tensor x) -> Tensor",
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=_CASES,
    ),
)
