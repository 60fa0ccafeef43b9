"""Kernels of experts, ragged tokens and quantized sums, emulated, where the conformance cases do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ds_accel_cuda.libraries import emulated
from ds_core.errors import OpError
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness
from ds_core.ops.table import op
from ds_core.testing.op_cases import as_tuple, compare

OPS = KernelOps(emulated(), HostLauncher())
EXACT = Exactness()
NEAR = Exactness(ulps=16, relative=1e-6)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agree(name: str, bound: Exactness, *arguments: Any) -> tuple[torch.Tensor, ...]:
    """The outputs of the kernel, which are those of the reference within the bound."""
    wanted = as_tuple(op(name).definition().reference(*arguments))
    found = as_tuple(getattr(OPS, name)(*arguments))
    for index, (got, want) in enumerate(zip(found, wanted, strict=True)):
        compare(got, want, bound, f"{name}: output {index}")
    return found


@pytest.mark.parametrize("pairs", [1, 31, 255, 257, 8193])
@pytest.mark.parametrize("experts", [1, 2, 33, 1537])
def test_pairs_and_experts_around_the_size_of_a_tile_and_of_a_block(pairs: int, experts: int) -> None:
    chosen = torch.randint(-1, experts, (pairs, 1), generator=torch.Generator().manual_seed(pairs))
    agree("expert_permutation", EXACT, chosen, experts, -1, 1, False, False)


@pytest.mark.parametrize("by_slot", [False, True])
def test_tiles_grow_where_there_are_very_many_pairs(by_slot: bool) -> None:
    chosen = torch.randint(0, 5, (150_001, 2), generator=torch.Generator().manual_seed(0))
    agree("expert_permutation", EXACT, chosen, 5, 60_000, 128, False, by_slot)


@pytest.mark.parametrize("bad", [7, -2, 2**40])
def test_an_expert_that_is_none_is_named(bad: int) -> None:
    chosen = torch.randint(0, 7, (500, 2), generator=torch.Generator().manual_seed(0))
    chosen[400, 1] = bad
    with pytest.raises(OpError, match=rf"experts\[400, 1\] is {bad}; allowed: 0 to 6, or -1 for none"):
        OPS.expert_permutation(chosen, 7, -1, 1, False, False)


@pytest.mark.parametrize("experts", [32, 33, 64, 65, 256, 257, 1000])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_experts_around_what_a_lane_keeps(experts: int, score: str) -> None:
    logits = normal(6, experts)
    agree("top_k_gate", NEAR, logits, None, min(experts, 40), score, True, 1, 1, "max", 1.0)  # more than a lane each


@pytest.mark.parametrize("group_score", ["max", "top2"])
@pytest.mark.parametrize("experts", [128, 512])
def test_as_many_groups_as_there_may_be(group_score: str, experts: int) -> None:
    bias = normal(experts, seed=1)
    agree("top_k_gate", NEAR, normal(9, experts), bias, 5, "sigmoid", True, 64, 37, group_score, 2.5)


@pytest.mark.parametrize("experts", [48, 320])
def test_equal_experts_are_taken_from_the_lowest_number(experts: int) -> None:
    for value in (0.0, -0.0, 1.0):
        _, chosen, _ = agree(
            "top_k_gate", NEAR, torch.full((3, experts), value), None, 7, "softmax", False, 4, 2, "max", 1.0
        )
        assert chosen.tolist() == [list(range(7))] * 3
    zeros = torch.zeros(1, experts)
    zeros[0, ::2] = -0.0
    _, chosen, _ = agree("top_k_gate", NEAR, zeros, None, 7, "sigmoid", False, 4, 2, "max", 1.0)
    assert chosen.tolist() == [list(range(7))]


@pytest.mark.parametrize("experts", [12, 300])
@pytest.mark.parametrize("bias", [float("inf"), -float("inf"), float("nan")])
def test_a_bias_that_is_not_finite_still_gives_different_experts(experts: int, bias: float) -> None:
    biases = torch.zeros(experts)
    biases[::3] = bias
    _, chosen, _ = agree("top_k_gate", NEAR, normal(8, experts), biases, 9, "sigmoid", True, 3, 3, "max", 1.0)
    assert all(len(set(row)) == 9 for row in chosen.tolist())


def test_tables_are_read_at_their_last_row_and_no_further() -> None:
    table, index = normal(11, 70), torch.tensor([10, 0, 10])
    agree("ragged_embed", EXACT, table, index, index, table, index, table)
    for place in range(3):
        given = [index, index, index]
        given[place] = torch.tensor([10, 0, 11])
        with pytest.raises(OpError, match=r"\[2\] is 11; allowed: 0 to 10"):
            OPS.ragged_embed(table, given[0], given[1], table, given[2], table)


@pytest.mark.parametrize("format", ["int8", "int4", "e3m2"])
def test_many_ranks_and_groups_longer_than_a_block_holds(format: str) -> None:
    numel = 33_003
    found = [
        op("quantize").definition().reference(normal(numel, seed=seed), format, 20_000, "symmetric")[:2]
        for seed in range(17)
    ]
    q, scales = (torch.stack(parts) for parts in zip(*found, strict=True))
    agree("quantized_reduce", EXACT, q, scales, None, format, 20_000, numel, True, torch.bfloat16)
    agree(
        "quantized_reduce_quantize", EXACT, q, scales, None, format, 20_000, numel, False, "int8", 30_000, "asymmetric"
    )
    agree("swizzle_quantize", EXACT, normal(6 * 7001), format, 6000, 2, 3, "symmetric", 9, 5)


def test_groups_of_the_result_begin_within_eights_of_the_chunks() -> None:
    q = torch.randint(0, 256, (5, 150), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    scales = normal(5, 300 // 6).square()
    for size in (2, 6, 10, 34, 300):
        agree("quantized_reduce_quantize", EXACT, q, scales, None, "int4", 6, 300, False, "int4", size, "symmetric")
