"""Reducing ends of quantized collectives against plain torch, and a hierarchical all-to-all in one process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError
from ds_core.ops import Quantized

WAYS = [
    ("int8", "symmetric"),
    ("int8", "asymmetric"),
    ("int4", "asymmetric"),
    ("e4m3fn", "symmetric"),
    ("e3m2", "power_of_two"),
]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sent(chunks: torch.Tensor, format: str, group_size: int, scaling: str = "symmetric") -> Quantized:
    """What the ranks send, a row each."""
    found = [ops.quantize(chunk, format, group_size, scaling=scaling) for chunk in chunks]
    zeros = None if found[0].zeros is None else torch.stack([each.zeros for each in found])
    return Quantized(torch.stack([each.q for each in found]), torch.stack([each.scales for each in found]), zeros)


def restored(chunks: torch.Tensor, format: str, group_size: int, scaling: str) -> torch.Tensor:
    found = [ops.quantize(chunk, format, group_size, scaling=scaling) for chunk in chunks]
    return torch.stack([ops.dequantize(*each, format, group_size, chunks.shape[1:]) for each in found])


@pytest.mark.parametrize(("format", "scaling"), WAYS)
@pytest.mark.parametrize("average", [False, True])
def test_the_sum_is_that_of_the_restored_chunks(format: str, scaling: str, average: bool) -> None:
    chunks = normal(5, 203)
    got = ops.quantized_reduce(*sent(chunks, format, 32, scaling), format, 32, 203, average=average)
    want = restored(chunks, format, 32, scaling).double().sum(0) / (5 if average else 1)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


def test_the_order_is_that_of_ranks() -> None:
    big = torch.tensor([[1e8], [1.0], [-1e8]])
    order = {(0, 1, 2): 0.0, (0, 2, 1): 1.0, (1, 0, 2): 0.0, (2, 0, 1): 1.0}
    for ranks, want in order.items():
        chunks = big[list(ranks)]
        assert ops.quantized_reduce(torch.ones(3, 1, dtype=torch.int8), chunks, None, "int8", 1, 1).item() == want


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_result_is_rounded_once(dtype: torch.dtype) -> None:
    found = sent(normal(3, 100), "int8", 32)
    exact = ops.quantized_reduce(*found, "int8", 32, 100)
    assert torch.equal(ops.quantized_reduce(*found, "int8", 32, 100, dtype=dtype), exact.to(dtype))


@pytest.mark.parametrize(("format", "scaling"), WAYS)
@pytest.mark.parametrize("seed", [-1, 7])
def test_requantizing_is_quantizing_the_sum(format: str, scaling: str, seed: int) -> None:
    found = sent(normal(4, 300), "int4", 32)
    again = ops.quantized_reduce_quantize(
        *found, "int4", 32, 300, average=True, out_format=format, out_group_size=48, out_scaling=scaling,
        rounding_seed=seed, rounding_offset=11,
    )  # fmt: skip
    total = ops.quantized_reduce(*found, "int4", 32, 300, average=True)
    want = ops.quantize(total, format, 48, scaling=scaling, rounding_seed=seed, rounding_offset=11)
    assert torch.equal(again.q, want.q) and torch.equal(again.scales, want.scales)
    assert (again.zeros is None) == (want.zeros is None)
    assert again.zeros is None or torch.equal(again.zeros, want.zeros)


def test_formats_of_the_chunks_are_kept_unless_another_is_asked_for() -> None:
    found = sent(normal(4, 300), "int4", 32)
    q, scales, zeros = ops.quantized_reduce_quantize(*found, "int4", 32, 300)
    assert (q.shape, scales.shape, zeros) == ((150,), (10,), None)


@pytest.mark.parametrize(("format", "scaling"), WAYS)
def test_swizzling_moves_whole_chunks(format: str, scaling: str) -> None:
    nodes, ranks, chunk = 3, 4, 96
    x = normal(nodes, ranks, chunk)
    got = ops.swizzle_quantize(x, format, 32, nodes, ranks, scaling=scaling, rounding_seed=3)
    whole = ops.quantize(x, format, 32, scaling=scaling, rounding_seed=3)  # groups end where chunks do
    for part, want in zip(got, whole, strict=True):
        if want is not None:
            by_rank = want.view(nodes, ranks, -1).transpose(0, 1).reshape(nodes * ranks, -1)
            assert torch.equal(part, by_rank)


def test_groups_end_with_their_chunk() -> None:
    x = normal(2, 2, 7)
    got = ops.swizzle_quantize(x, "int4", 4, 2, 2)
    for place, (n, j) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        alone = ops.quantize(x[n, j], "int4", 4)
        assert torch.equal(got.q[place], alone.q) and torch.equal(got.scales[place], alone.scales)


def test_two_hops_reduce_what_every_rank_holds() -> None:
    """Every rank quantizes; hop one inside a node, hop two between nodes; each rank ends with its sum."""
    nodes, local, chunk, group = 2, 3, 40, 16
    world = nodes * local
    gradients = normal(world, world * chunk)
    first = [ops.swizzle_quantize(g, "int8", group, nodes, local) for g in gradients]
    second = []
    for rank in range(world):
        node, j = divmod(rank, local)
        mates = [first[node * local + i] for i in range(local)]  # mate i sends rows j * nodes ... of its swizzled codes
        rows = slice(j * nodes, (j + 1) * nodes)
        parts = [
            ops.quantized_reduce_quantize(
                torch.stack([m.q[rows][n] for m in mates]), torch.stack([m.scales[rows][n] for m in mates]), None,
                "int8", group, chunk,
            )
            for n in range(nodes)
        ]  # fmt: skip
        second.append(parts)
    for rank in range(world):
        node, j = divmod(rank, local)
        peers = [second[n * local + j][node] for n in range(nodes)]
        got = ops.quantized_reduce(
            torch.stack([p.q for p in peers]), torch.stack([p.scales for p in peers]), None, "int8", group, chunk
        )
        want = gradients.view(world, world, chunk)[:, rank].sum(0)
        assert (got - want).abs().max() < 0.25  # of sums of 6 normal values, quantized twice to 8 bits
        other = gradients.view(world, world, chunk)[:, (rank + 1) % world].sum(0)
        assert (got - other).abs().max() > 1


@pytest.mark.parametrize("name", ["quantized_reduce", "quantized_reduce_quantize", "swizzle_quantize"])
def test_compiled_as_one_graph(name: str) -> None:
    found = sent(normal(2, 64), "int4", 32)
    calls: dict[str, Callable[[torch.Tensor], Any]] = {
        "quantized_reduce": lambda q: ops.quantized_reduce(q, found.scales, None, "int4", 32, 64),
        "quantized_reduce_quantize": lambda q: ops.quantized_reduce_quantize(q, found.scales, None, "int4", 32, 64)[0],
        "swizzle_quantize": lambda q: ops.swizzle_quantize(q.float(), "int8", 8, 2, 1).q,
    }
    call = calls[name]
    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(found.q), call(found.q))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 33, dtype=torch.uint8)}, r"q must have shape \(2, 32\) \(chunks of 64 elements as int4"),
        ({"q": torch.zeros(0, 32, dtype=torch.uint8)}, r"q must be \[ranks, packed chunk\] with 1 rank or more"),
        ({"q": torch.zeros(2, 32)}, "q must be uint8, got float32"),
        ({"scales": torch.ones(2, 3)}, r"scales must have shape \(2, 2\) \(one scale for every 32 elements of each"),
        ({"zeros": torch.zeros(2, 3, dtype=torch.int8)}, r"zeros must have shape \(2, 2\)"),
        ({"format": "int5"}, "format must be one of int8, int4"),
        ({"group_size": 33}, "group_size must be a multiple of 2 for int4, got 33"),
        ({"numel": -1}, "numel must be 0 or more, got -1"),
        ({"dtype": torch.float64}, "dtype must be float32, bfloat16, float16, got float64"),
    ],
)
def test_chunks_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    given = {
        "q": torch.zeros(2, 32, dtype=torch.uint8),
        "scales": torch.ones(2, 2),
        "zeros": None,
        "format": "int4",
        "group_size": 32,
        "numel": 64,
    }
    with pytest.raises(OpError, match=message):
        ops.quantized_reduce(**{**given, **change})


def test_groups_of_the_result_fit_the_packing_of_both_formats() -> None:
    found = sent(normal(2, 64), "e3m2", 32)
    with pytest.raises(OpError, match="out_group_size must be a multiple of 4 for e3m2, got 6"):
        ops.quantized_reduce_quantize(*found, "e3m2", 32, 64, out_format="int8", out_group_size=6)


def test_hierarchies_that_do_not_fit_are_refused() -> None:
    with pytest.raises(OpError, match=r"x must have a multiple of nodes \* ranks_per_node = 6 elements, got 64"):
        ops.swizzle_quantize(normal(64), "int8", 32, 2, 3)
    with pytest.raises(OpError, match="nodes and ranks_per_node must be 1 or more, got 0 and 3"):
        ops.swizzle_quantize(normal(64), "int8", 32, 0, 3)
    with pytest.raises(OpError, match="scaling of int8 must be symmetric or asymmetric, got 'power_of_two'"):
        ops.swizzle_quantize(normal(64), "int8", 32, 2, 2, scaling="power_of_two")
