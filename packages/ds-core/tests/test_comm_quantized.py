"""Quantized collectives: the numbers of quantizing and restoring in one process, and the bytes that they promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ds_core import comm, ops
from ds_core.errors import CommError
from ds_core.testing import run_ranks

pytestmark = pytest.mark.ranks

FORMATS = {8: "int8", 4: "int4"}
SIZES = (0, 1, 255, 256, 1000, 4097)


def values(numel: int, dtype: torch.dtype, rank: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(rank)).mul(10.0**rank).to(dtype)


def restored(tensor: torch.Tensor, bits: int, group_size: int, dtype: torch.dtype) -> torch.Tensor:
    """Quantized and restored here, without any other rank."""
    if not tensor.numel():
        return tensor.to(dtype)
    codes, scales, zeros = ops.quantize(tensor, FORMATS[bits], group_size)
    return ops.dequantize(codes, scales, zeros, FORMATS[bits], group_size, tensor.shape, dtype)


def message_bytes(numel: int, bits: int, group_size: int) -> int:
    return math.ceil((4 * math.ceil(numel / group_size) + math.ceil(numel * bits / 8)) / 16) * 16


def gather(bits: int, group_size: int) -> list[tuple[int, int]]:
    rank, world, counted = comm.get_rank(), comm.get_world_size(), []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for numel in SIZES:
            every = [values(numel, dtype, each) for each in range(world)]
            expected = torch.cat([restored(each, bits, group_size, dtype) for each in every])
            for is_async in (False, True):
                comm.reset()
                out = torch.full((world * numel,), math.nan, dtype=dtype)
                handle = comm.all_gather_quantized(out, every[rank], None, bits, group_size, is_async)
                if handle is not None:
                    handle.wait()
                assert torch.equal(out, expected), (dtype, numel)
                counted.append((numel, sum(row.bytes_sent for row in comm.report().rows)))
    return counted


def scatter(bits: int, group_size: int) -> list[tuple[int, int]]:
    rank, world, counted = comm.get_rank(), comm.get_world_size(), []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for numel in SIZES:
            every = [values(world * numel, dtype, each).view(world, -1) for each in range(world)]
            total = restored(every[0][rank], bits, group_size, torch.float32)
            for each in every[1:]:
                total = total + restored(each[rank], bits, group_size, torch.float32)
            for is_async in (False, True):
                comm.reset()
                source = every[rank].clone()
                out = source[rank]  # this rank's piece of the input
                handle = comm.reduce_scatter_quantized(out, source, None, bits, group_size, is_async)
                if handle is not None:
                    handle.wait()
                assert torch.equal(out, total.to(dtype)), (dtype, numel)
                counted.append((numel, sum(row.bytes_sent for row in comm.report().rows)))
    return counted


@pytest.mark.parametrize(("bits", "group_size"), [(8, 256), (8, 100), (4, 64)])
@pytest.mark.parametrize("call", [gather, scatter])
def test_numbers_and_bytes(call: Any, bits: int, group_size: int) -> None:
    world = 3
    for counted in run_ranks(call, world, bits, group_size):
        for numel, sent in counted:
            assert sent == (world - 1) * message_bytes(numel, bits, group_size)


def test_one_rank_sends_and_quantizes_nothing() -> None:
    source, out = torch.randn(10), torch.empty(10)
    comm.all_gather_quantized(out, source)
    assert torch.equal(out, source)
    handle = comm.reduce_scatter_quantized(out, source + 1, async_op=True)
    assert handle is not None and handle.wait()
    assert torch.equal(out, source + 1)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bits": 7}, "bits must be one of 4, 8, got 7"),
        ({"output": torch.empty(11)}, r"it must have 1 x 10 = 10"),
        ({"input": torch.ones(20)[::2]}, "must be contiguous"),
        ({"bits": 4, "group_size": 3}, "whole bytes of 4-bit codes, got 3"),
    ],
)
def test_what_does_not_fit_is_an_error(change: dict[str, Any], said: str) -> None:
    arguments: dict[str, Any] = {"output": torch.empty(10), "input": torch.ones(10), **change}
    with pytest.raises(CommError, match=said):
        comm.all_gather_quantized(**arguments)
