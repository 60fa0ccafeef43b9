"""Calls of kernels that are no ops of the table: made by name, here and there, and compared bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from ds_core.ops.calls.kernels import code

__all__ = ["Beside", "calls"]

Make = Callable[[str], Callable[..., None]]
"""A kernel by the name of its row, ready to call with the fields of its struct."""


class Beside(NamedTuple):
    """One call. `run` makes the kernel, calls it, and returns what it wrote."""

    kernel: str
    case: str
    run: Callable[[Make], torch.Tensor]


def _reductions() -> Iterator[Beside]:
    """Sum, average, minimum and bits over three tensors, through a table of their addresses."""
    floats = [(dtype, op) for dtype in (torch.float32, torch.bfloat16, torch.float16) for op in (0, 1, 3)]
    for dtype, op in [*floats, (torch.float64, 0), (torch.int8, 0), (torch.int32, 7), (torch.int64, 4)]:
        for numel in (0, 1, 10_007):
            case = f"{str(dtype).removeprefix('torch.')}, op {op}, {numel}"
            yield Beside("reduce_ranks", case, _reduction(dtype, op, numel))


def _reduction(dtype: torch.dtype, op: int, numel: int) -> Callable[[Make], torch.Tensor]:
    def run(make: Make) -> torch.Tensor:
        generator = torch.Generator().manual_seed(numel)
        inputs = [(torch.randn(numel, generator=generator) * 50).to(dtype) for _ in range(3)]
        table = torch.tensor([each.data_ptr() for each in inputs], dtype=torch.int64)
        out, copy = (torch.zeros(numel, dtype=dtype) for _ in range(2))
        fields: dict[str, Any] = {"dtype": code(dtype), "op": op, "count": len(inputs), "numel": numel}
        make("reduce_ranks")(out.device, inputs=table.data_ptr(), out=out.data_ptr(), copy=copy.data_ptr(), **fields)
        return torch.cat([out, copy])

    return run


def calls() -> Iterator[Beside]:
    """All of them."""
    yield from _reductions()
