"""Emulated attention where conformance cases do not reach: passes there and back, and batches with faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_accel_cuda.libraries import emulated
from ds_core.errors import OpError
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.case import Exactness
from ds_core.ops.table import op
from ds_core.testing import op_cases

KERNELS = KernelOps(emulated(), HostLauncher())
BLOCK = 4


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def reference(name: str) -> Callable[..., Any]:
    return op(name).definition().reference


def forward_and_backward(
    name: str, tensors: tuple[torch.Tensor | None, ...], scalars: tuple[Any, ...], pick: Callable[[str], Any]
) -> tuple[torch.Tensor, ...]:
    """Results and all gradients; the backward pass gets what the forward pass of the same library found."""
    y, lse = pick(f"{name}_forward")(*tensors, *scalars)
    needs = [bias is not None for bias in tensors[-2:]]
    gradients = pick(f"{name}_backward")(random(*y.shape, seed=9), *tensors, y, lse, *scalars, *needs)
    return (y, lse, *gradients)


def compare(
    name: str, tensors: tuple[torch.Tensor | None, ...], scalars: tuple[Any, ...], relative: float = 5e-5
) -> tuple[torch.Tensor, ...]:
    found = forward_and_backward(name, tensors, scalars, lambda op_name: getattr(KERNELS, op_name))
    want = forward_and_backward(name, tensors, scalars, reference)
    for number, (got, right) in enumerate(zip(found, want, strict=True)):
        op_cases.compare(got, right, Exactness(ulps=1, relative=relative), f"{name}: {number} of y, lse and gradients")
    return found


LAYOUT = torch.tensor([[[1, 0, 1], [0, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 1, 0], [0, 0, 1]]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("scale", "relative"),
    [(0.4, 5e-5), (30.0, 5e-4)],  # scores of 300 are rounded to 1e-5, which is 1e-5 of a probability
)
def test_a_block_sparse_pass_there_and_back(scale: float, relative: float) -> None:
    q, k, v = (random(2, 2, 40, 8, seed=n) for n in range(3))
    bias = random(1, 2, 40, 40, seed=3)
    key_bias = random(2, 40, seed=4)
    key_bias[0, 5:20] = -torch.inf
    key_bias[1] = -torch.inf  # a sequence of padding alone
    y, lse, dq, _, _, dkey_bias, _ = compare(
        "block_sparse_attention", (q, k, v, LAYOUT, key_bias, bias), (16, scale, True), relative
    )
    assert (y[1] == 0).all() and (lse[1] == -torch.inf).all() and (dq[1] == 0).all() and (dkey_bias[1] == 0).all()
    assert (y[0, 0, 16:32] == 0).all() and (y[0, 1, 16:32] != 0).any()


def test_an_evoformer_pass_there_and_back() -> None:
    q, k, v = (random(2, 3, 35, 2, 8, seed=n) for n in range(3))
    mask = torch.zeros(2, 3, 1, 1, 35)
    mask[0, 0, ..., 30:] = -1e9
    mask[1, 2] = -torch.inf
    y, *_, dpair = compare("evoformer_attention", (q, k, v, mask, random(2, 1, 2, 35, 35, seed=4)), (8**-0.5,))
    assert (y[1, 2] == 0).all() and torch.isfinite(dpair).all()


def batch(counts: list[int], lengths: list[int], heads: int = 4, width: int = 30) -> dict[str, Any]:
    """Sequences with `counts` tokens in q and `lengths` keys; what no token may see is NaN."""
    sequences = len(counts)
    table = torch.arange(sequences * width).view(sequences, width)
    caches = [random(sequences * width, BLOCK, 2, 8, seed=n) for n in (1, 2)]
    for cache in caches:
        rows = cache.view(sequences, width * BLOCK, 2, 8)
        for s, length in enumerate(lengths):
            rows[s, length:] = torch.nan
    return {
        "q": random(sum(counts), heads, 8),
        "key_cache": caches[0],
        "value_cache": caches[1],
        "block_table": table,
        "lengths": torch.tensor(lengths),
        "query_starts": torch.tensor([0, *counts]).cumsum(0),
        "alibi_slopes": None,
        "scale": 0.4,
        "window": 0,
        "softcap": 0.0,
        "splits": 0,
    }


@pytest.mark.parametrize("window", [0, 6])
def test_what_lies_behind_a_sequence_is_not_read(window: int) -> None:
    arguments = {**batch([1, 9, 2], [17, 9, 30]), "window": window}
    y = KERNELS.paged_attention(**arguments)
    torch.testing.assert_close(y, reference("paged_attention")(**arguments))


@pytest.mark.parametrize("window", [0, 11])
def test_a_token_has_the_same_bits_whatever_else_is_in_the_batch(window: int) -> None:
    settings = {"window": window, "splits": 1}
    together = KERNELS.paged_attention(**{**batch([3, 40, 1], [33, 75, 50]), **settings})
    for s, (count, length, start) in enumerate([(3, 33, 0), (40, 75, 3), (1, 50, 43)]):
        whole = batch([3, 40, 1], [33, 75, 50])
        alone = {
            **whole,
            **settings,
            "q": whole["q"][start + count - 1 : start + count],
            "block_table": whole["block_table"][s : s + 1],
            "lengths": torch.tensor([length]),
            "query_starts": torch.tensor([0, 1]),
        }
        assert torch.equal(KERNELS.paged_attention(**alone)[0], together[start + count - 1])


def test_parts_of_a_sequence_are_combined_to_the_whole() -> None:
    results = [KERNELS.paged_attention(**{**batch([1, 2], [101, 63]), "splits": n}) for n in (1, 2, 3, 7, 64)]
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(result, results[0]) for result in results[1:])


def test_scores_too_large_for_an_exponential() -> None:
    arguments = {**batch([1, 9], [17, 9]), "scale": 500.0}
    y = KERNELS.paged_attention(**arguments)
    assert torch.isfinite(y).all()
    torch.testing.assert_close(y, reference("paged_attention")(**arguments), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"query_starts": torch.tensor([1, 3, 5])}, "query_starts must begin with 0, got 1"),
        ({"query_starts": torch.tensor([0, 3, 2])}, "must not fall"),
        ({"query_starts": torch.tensor([0, 3, 2**62])}, "end by the 5 tokens of q"),
        ({"lengths": torch.tensor([2, 6])}, r"lengths\[0\] is 2; allowed: 3"),
        ({"lengths": torch.tensor([3, 2**40])}, r"lengths\[1\] is 1099511627776"),
        ({"block_table": torch.tensor([[0, 1], [2, 4]])}, r"block_table\[1, 1\] is 4; allowed: 0 to 3"),
        ({"block_table": torch.tensor([[0, 1], [-1, 3]])}, r"block_table\[1, 0\] is -1; allowed: 0 to 3"),
    ],
)
def test_a_batch_that_names_what_is_not_there(changed: dict[str, Any], message: str) -> None:
    arguments = {**batch([3, 2], [3, 6], width=2), **changed}
    with pytest.raises(OpError, match=message):
        KERNELS.paged_attention(**arguments)


def test_a_slot_that_is_not_in_the_cache() -> None:
    caches, rows = [torch.zeros(3, BLOCK, 2, 8) for _ in range(2)], torch.ones(3, 2, 8)
    with pytest.raises(OpError, match=r"slots\[1\] is 12; allowed: 0 to 11, or -1"):
        KERNELS.paged_kv_write_(*caches, rows, rows, torch.tensor([2, 12, 5], dtype=torch.int32))
