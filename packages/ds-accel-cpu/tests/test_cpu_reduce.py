"""reduce_ranks at every level: rank order, one rounding, any output place."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch

from ds_accel_cpu.isa import library_path, usable_levels
from ds_accel_cpu.launching import callable_kernel
from ds_core.ops.calls.kernels import CallableKernel, code
from ds_core.ops.native import load

STEPS: dict[int, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    0: torch.add,
    1: torch.add,
    2: torch.mul,
    3: torch.minimum,
    4: torch.maximum,
    5: torch.bitwise_and,
    6: torch.bitwise_or,
    7: torch.bitwise_xor,
}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int8, torch.uint8, torch.int32, torch.int64)
CASES = [(dtype, op) for dtype in FLOATS for op in range(5)] + [
    (dtype, op) for dtype in INTEGERS for op in (0, 2, 3, 4, 5, 6, 7)
]


@cache
def kernel(level: str) -> CallableKernel:
    return callable_kernel(load(library_path(level)), "reduce_ranks")


def values(numel: int, dtype: torch.dtype, rank: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    if dtype.is_floating_point:
        x = torch.randn(numel, generator=generator).mul(10.0 ** (rank % 3)).to(dtype)
        x[numel // 2 : numel // 2 + 1] = float("nan") if rank == 1 else 1.0
        return x
    info = torch.iinfo(dtype)
    return torch.randint(info.min, info.max, (numel,), generator=generator, dtype=dtype)


def expected(inputs: list[torch.Tensor], op: int) -> torch.Tensor:
    narrow = inputs[0].dtype in (torch.bfloat16, torch.float16)
    wide = [each.float() if narrow else each for each in inputs]
    total = wide[0]
    for each in wide[1:]:
        total = STEPS[op](total, each)
    return (total / len(inputs) if op == 1 and len(inputs) > 1 else total).to(inputs[0].dtype)


def reduce(level: str, inputs: list[torch.Tensor], op: int, out: torch.Tensor, copy: torch.Tensor | None) -> None:
    addresses = torch.tensor([each.data_ptr() for each in inputs])
    kernel(level)(
        torch.device("cpu"),
        dtype=code(out.dtype),
        op=op,
        count=len(inputs),
        numel=out.numel(),
        inputs=addresses.data_ptr(),
        out=out.data_ptr(),
        copy=0 if copy is None else copy.data_ptr(),
        past_caches=int(copy is None),
    )


@pytest.mark.parametrize("level", usable_levels())
def test_every_dtype_and_reduction(level: str) -> None:
    for dtype, op in CASES:
        for ranks, numel in ((1, 5), (2, 0), (2, 3001), (3, 1), (4, 1024), (5, 2055)):
            inputs = [values(numel, dtype, rank) for rank in range(ranks)]
            wanted = expected(inputs, op)
            for place in (None, 0, ranks - 1):  # a tensor of its own, or one of the inputs
                mine = [each.clone() for each in inputs]
                out = torch.empty(numel, dtype=dtype) if place is None else mine[place]
                copy = torch.empty(numel, dtype=dtype) if place == 0 else None
                reduce(level, mine, op, out, copy)
                for result in (out, *([] if copy is None else [copy])):
                    assert torch.equal(result.nan_to_num(7), wanted.nan_to_num(7)), (dtype, op, ranks, numel, place)


@pytest.mark.parametrize("level", usable_levels())
def test_what_is_not_defined_is_refused(level: str) -> None:
    with pytest.raises(RuntimeError, match="outside of what the op allows"):
        reduce(level, [torch.ones(2)] * 2, 5, torch.ones(2), None)
    with pytest.raises(RuntimeError, match="outside of what the op allows"):
        reduce(level, [torch.ones(2, dtype=torch.int32)] * 2, 1, torch.ones(2, dtype=torch.int32), None)
