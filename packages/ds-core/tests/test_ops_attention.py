"""Block-sparse and Evoformer attention against dense torch in double precision, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from ds_core import ops
from ds_core.errors import OpError

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def leaf(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


def compare(ours: Callable[..., torch.Tensor], theirs: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> None:
    """Results and the gradients of every input."""
    exact = [t.detach().double().requires_grad_() for t in inputs]
    tolerance = TOLERANCE[inputs[0].dtype]
    y, want = ours(*inputs), theirs(*exact)
    assert y.dtype == inputs[0].dtype and y.shape == want.shape
    torch.testing.assert_close(y.double(), want, rtol=tolerance, atol=tolerance)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(y.dtype)
    found = torch.autograd.grad(y, inputs, dy)
    for got, right, given in zip(found, torch.autograd.grad(want, exact, dy.double()), inputs, strict=True):
        assert got.dtype == given.dtype
        torch.testing.assert_close(
            got.double(), right, rtol=tolerance, atol=tolerance * max(1, right.abs().max().item())
        )


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """Attention over the last but one dimension, zeros for rows that see nothing."""
    scores = q @ k.mT / q.shape[-1] ** 0.5 + added
    blind = (scores == -torch.inf).all(-1, keepdim=True)
    return scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0) @ v


def masked(layout: torch.Tensor, block_size: int, tokens: int, causal: bool = False) -> torch.Tensor:
    seen = torch.kron(layout, torch.ones(1, block_size, block_size, dtype=torch.bool))[:, :tokens, :tokens]
    if causal:
        seen = seen.tril()
    return torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)


LAYOUT = torch.tensor([[[1, 0, 1], [0, 0, 0], [1, 1, 1]], [[1, 1, 0], [0, 1, 0], [0, 0, 1]]], dtype=torch.bool)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("causal", [False, True])
def test_block_sparse_attention_is_dense_attention_with_the_mask(dtype: torch.dtype, causal: bool) -> None:
    q, k, v = (leaf(2, 2, 40, 8, dtype=dtype, seed=n) for n in range(3))
    compare(
        lambda q, k, v: ops.block_sparse_attention(q, k, v, LAYOUT, 16, causal=causal),
        lambda q, k, v: dense(q, k, v, masked(LAYOUT, 16, 40, causal)),
        q,
        k,
        v,
    )


def test_a_row_without_a_block_is_zero_and_gets_no_gradient() -> None:
    q, k, v = (leaf(1, 2, 40, 8, seed=n) for n in range(3))
    y = ops.block_sparse_attention(q, k, v, LAYOUT, 16)
    assert (y[:, 0, 16:32] == 0).all() and (y[:, 1, 16:32] != 0).all()
    dq, dk, dv = torch.autograd.grad(y.sum(), (q, k, v))
    assert (dq[:, 0, 16:32] == 0).all() and torch.isfinite(dk).all() and torch.isfinite(dv).all()


@pytest.mark.parametrize("shape", [(40, 40), (2, 40, 40), (1, 2, 1, 40), (2, 1, 40, 40), (40, 1)])
def test_a_bias_of_any_shape_that_expands_gets_its_gradient(shape: tuple[int, ...]) -> None:
    q, k, v = (leaf(2, 2, 40, 8, seed=n) for n in range(3))
    compare(
        lambda q, k, v, bias: ops.block_sparse_attention(q, k, v, LAYOUT, 16, bias=bias),
        lambda q, k, v, bias: dense(q, k, v, masked(LAYOUT, 16, 40) + bias),
        *(q, k, v, leaf(*shape, seed=5)),
    )


def test_keys_are_masked_by_truth_or_by_a_number_that_is_added() -> None:
    q, k, v = (leaf(2, 2, 40, 8, seed=n) for n in range(3))
    seen = torch.rand(2, 40, generator=torch.Generator().manual_seed(7)) > 0.3
    seen[1] = False  # a sequence of padding alone
    number = torch.zeros(2, 40).masked_fill(~seen, -torch.inf)
    by_truth = ops.block_sparse_attention(q, k, v, LAYOUT, 16, key_padding_mask=seen)
    by_number = ops.block_sparse_attention(q, k, v, LAYOUT, 16, key_padding_mask=number)
    assert torch.equal(by_truth, by_number) and (by_truth[1] == 0).all()
    want = dense(*(x.double() for x in (q, k, v)), masked(LAYOUT, 16, 40) + number[:, None, None].double())
    torch.testing.assert_close(by_truth.double(), want, rtol=1e-5, atol=1e-5)
    for gradient in torch.autograd.grad(by_truth.sum(), (q, k, v)):
        assert (gradient[1] == 0).all() and torch.isfinite(gradient).all()


def test_a_number_added_to_keys_gets_its_gradient() -> None:
    compare(
        lambda q, k, v, mask: ops.block_sparse_attention(q, k, v, LAYOUT, 16, key_padding_mask=mask),
        lambda q, k, v, mask: dense(q, k, v, masked(LAYOUT, 16, 40) + mask[:, None, None]),
        *(leaf(2, 2, 40, 8, seed=n) for n in range(3)),
        leaf(2, 40, seed=4),
    )


def evoformer(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *biases: torch.Tensor) -> torch.Tensor:
    q, k, v = (x.transpose(-2, -3) for x in (q, k, v))
    return dense(q, k, v, torch.as_tensor(sum(biases))).transpose(-2, -3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_evoformer_attention_with_both_biases(dtype: torch.dtype) -> None:
    compare(
        ops.evoformer_attention,
        evoformer,
        *(leaf(2, 3, 11, 2, 8, dtype=dtype, seed=n) for n in range(3)),
        leaf(2, 3, 1, 1, 11, dtype=dtype, seed=3),
        leaf(2, 1, 2, 11, 11, dtype=dtype, seed=4),
    )


def test_evoformer_attention_without_a_bias_and_with_one() -> None:
    q, k, v = (leaf(1, 3, 11, 2, 8, seed=n) for n in range(3))
    mask, pair = leaf(1, 3, 1, 1, 11, seed=3), leaf(1, 1, 2, 11, 11, seed=4)
    compare(ops.evoformer_attention, evoformer, q, k, v)
    compare(ops.evoformer_attention, evoformer, q, k, v, mask)
    compare(lambda q, k, v, pair: ops.evoformer_attention(q, k, v, pair_bias=pair), evoformer, q, k, v, pair)


def test_column_attention_is_row_attention_of_the_swapped_alignment() -> None:
    q, k, v = (leaf(1, 7, 5, 2, 8, seed=n) for n in range(3))  # 7 sequences of 5 residues
    swapped = (x.transpose(1, 2) for x in (q, k, v))
    found = ops.evoformer_attention(*swapped).transpose(1, 2)
    want = torch.stack([evoformer(*(x[:, None, :, c] for x in (q, k, v)))[:, 0] for c in range(5)], 2)
    torch.testing.assert_close(found, want)


def test_biases_that_expand_are_expanded_and_their_gradients_summed() -> None:
    compare(
        ops.evoformer_attention,
        evoformer,
        *(leaf(2, 3, 11, 2, 8, seed=n) for n in range(3)),
        leaf(1, 1, 1, 11, seed=3),
        leaf(2, 11, 11, seed=4),
    )


def test_a_residue_that_sees_nothing_is_zero() -> None:
    q, k, v = (leaf(1, 2, 5, 2, 8, seed=n) for n in range(3))
    mask = torch.zeros(1, 2, 1, 1, 5)
    mask[:, 1] = -torch.inf
    y = ops.evoformer_attention(q, k, v, mask)
    assert (y[:, 1] == 0).all() and (y[:, 0] != 0).all()
    for gradient in torch.autograd.grad(y.sum(), (q, k, v)):
        assert (gradient[:, 1] == 0).all() and torch.isfinite(gradient).all()


def blocks(**changed: Any) -> dict[str, Any]:
    q = torch.zeros(2, 2, 40, 8)
    return {"q": q, "k": q, "v": q, "layout": LAYOUT, "block_size": 16, **changed}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"block_size": 24}, "block_size must be 16, 32, 64, 128, got 24"),
        ({"layout": LAYOUT.float()}, "layout must be bool, got float32"),
        ({"block_size": 32}, r"layout must have shape \(2 or 1, 2, 2\), .* of 32 that hold 40 tokens, got \(2, 3, 3\)"),
        ({"k": torch.zeros(2, 2, 41, 8)}, r"k must have shape \(2, 2, 40, 8\) \(the shape of q\)"),
        ({"q": torch.zeros(2, 40, 8)}, r"q must be \[batch, heads, tokens, dim\], got shape \(2, 40, 8\)"),
        ({"bias": torch.zeros(3, 40, 40)}, r"bias must expand to the scores, \(2, 2, 40, 40\), got \(1, 3, 40, 40\)"),
        ({"bias": torch.zeros(7)}, r"bias must expand to the scores, .* got \(7,\)"),
        ({"key_padding_mask": torch.zeros(40)}, r"key_padding_mask must have shape \(2, 40\) \(one for each key\)"),
    ],
)
def test_arguments_of_block_sparse_attention_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(OpError, match=message):
        ops.block_sparse_attention(**blocks(**changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"q": torch.zeros(3, 5, 8)}, r"q must be \[\*, sequences, residues, heads, dim\], got shape \(3, 5, 8\)"),
        ({"q": torch.zeros(1, 3, 5, 2, 300)}, "with dim 1 to 256, got shape"),
        ({"v": torch.zeros(1, 3, 5, 2, 8).half()}, "v must be float32 like q, got float16"),
        ({"mask_bias": torch.zeros(1, 3, 1, 1, 6)}, r"mask_bias must have shape \(1, 3, 1, 1, 5\) \(one for each key"),
        ({"pair_bias": torch.zeros(1, 3, 2, 5, 5)}, r"pair_bias must have shape \(1, 1, 2, 5, 5\)"),
    ],
)
def test_arguments_of_evoformer_attention_that_do_not_fit(changed: dict[str, Any], message: str) -> None:
    q = torch.zeros(1, 3, 5, 2, 8)
    with pytest.raises(OpError, match=message):
        ops.evoformer_attention(**{"q": q, "k": q, "v": q, **changed})


def test_a_gradient_of_a_bias_that_is_not_there_is_refused() -> None:
    q, lse = torch.zeros(1, 3, 5, 2, 8), torch.zeros(1, 3, 2, 5)
    with pytest.raises(OpError, match="need_pair_bias is set, and pair_bias is None"):
        torch.ops.ds.evoformer_attention_backward(q, q, q, q, None, None, q, lse, 1.0, False, True)
