"""Layouts of block-sparse attention: drawn small, and as their definitions say for any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError
from ds_core.ops import sparsity


def drawn(layout: torch.Tensor, head: int = 0) -> list[str]:
    return ["".join("x" if cell else "." for cell in row) for row in layout[head].tolist()]


def test_a_fixed_layout_has_windows_and_their_last_blocks() -> None:
    assert drawn(sparsity.fixed_layout(5, local_blocks=2)) == ["xx.xx", "xx.xx", ".xxxx", ".xxxx", ".x.xx"]


def test_a_causal_fixed_layout_looks_back_only() -> None:
    assert drawn(sparsity.fixed_layout(5, local_blocks=2, causal=True)) == ["x....", "xx...", ".xx..", ".xxx.", ".x.xx"]


def test_patterns_of_a_fixed_layout_take_other_blocks_of_a_window() -> None:
    layout = sparsity.fixed_layout(4, local_blocks=2, patterns=2, heads=3, horizontal=True)
    assert drawn(layout, 0) == ["xx.x", "xxxx", ".xxx", "xxxx"]
    assert drawn(layout, 1) == ["xxxx", "xxx.", "xxxx", "x.xx"]
    assert torch.equal(layout[2], layout[0])


def test_a_variable_layout_has_windows_of_its_own_lengths() -> None:
    found = sparsity.variable_layout(6, local_blocks=(1, 2), global_blocks=((4, 5),))
    assert drawn(found) == ["x...x.", ".xx.x.", ".xx.x.", "...xx.", "...xx.", "....xx"]


def test_a_longformer_layout_has_a_band_and_global_blocks() -> None:
    assert drawn(sparsity.longformer_layout(5, global_blocks=(0,))) == ["xxxxx", "xxx..", "xxxx.", "x.xxx", "x..xx"]


@pytest.mark.parametrize("causal", [False, True])
def test_a_bigbird_layout_is_a_longformer_layout_and_random_blocks(causal: bool) -> None:
    plain = sparsity.longformer_layout(12, global_blocks=((0, 2),), causal=causal)
    found = sparsity.bigbird_layout(12, global_blocks=2, random_blocks=2, heads=3, seed=5, causal=causal)
    assert (found | plain == found).all()
    more = (found & ~plain).sum(-1)
    assert int(more.max()) <= 2 and int(more.sum()) > 0
    assert not torch.equal(found[0], found[1])
    assert torch.equal(
        found, sparsity.bigbird_layout(12, global_blocks=2, random_blocks=2, heads=3, seed=5, causal=causal)
    )


@pytest.mark.parametrize(
    "make",
    [
        sparsity.dense_layout,
        sparsity.sliding_window_layout,
        sparsity.fixed_layout,
        sparsity.variable_layout,
        sparsity.bigbird_layout,
        sparsity.longformer_layout,
    ],
)
@pytest.mark.parametrize("causal", [False, True])
def test_every_block_of_queries_sees_itself_and_the_op_takes_the_layout(
    make: Callable[..., torch.Tensor], causal: bool
) -> None:
    layout = make(7, causal=causal)
    assert layout.dtype == torch.bool and layout.shape == (1, 7, 7)
    assert layout.diagonal(dim1=1, dim2=2).all()
    assert not (causal and layout.triu(1).any())
    q = torch.randn(1, 2, 100, 8)
    assert torch.isfinite(ops.block_sparse_attention(q, q, q, layout, 16, causal=causal)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparsity.sliding_window_layout(4, window_blocks=2), "window_blocks must be odd"),
        (
            lambda: sparsity.fixed_layout(8, local_blocks=4, global_blocks=3, patterns=2),
            "must be 1 to local_blocks = 4",
        ),
        (lambda: sparsity.bigbird_layout(4, random_blocks=5), "random_blocks must be 0 to the 4 blocks there are"),
        (lambda: sparsity.variable_layout(4, local_blocks=(2, 0)), "local_blocks must be lengths of 1 or more"),
    ],
)
def test_settings_that_make_no_layout(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        call()
