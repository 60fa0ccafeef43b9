"""Orthogonalization against the singular value decomposition, in both forms, alone and in batches."""

from __future__ import annotations

import pytest
import torch

from ds_core.errors import ModelError
from ds_core.optim.newton_schulz import best_dtype, orthogonalize

SHAPES = ((24, 24), (16, 64), (64, 16), (1, 5), (7, 3))


def matrix(shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """With singular values spread evenly from 0.05 to 1."""
    generator = torch.Generator().manual_seed(seed)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    return u @ torch.diag(torch.linspace(0.05, 1, min(shape))) @ vh


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("method", "dtype", "off"),
    [("standard", torch.float32, 1e-4), ("gram", torch.float32, 1e-3), ("standard", torch.bfloat16, 0.08)],
)
def test_singular_vectors_stay_and_singular_values_come_near_one(shape, method, dtype, off) -> None:
    x = matrix(shape)
    (found,) = orthogonalize([x], method=method, dtype=dtype)
    assert found.shape == x.shape
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    values = u.T @ found.float() @ vh.T
    assert (values.diag() > 0.6).all() and (values.diag() < 1.3).all()
    assert (values - values.diag().diag()).abs().max() < off


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_cubic_coefficients_converge_to_the_polar_factor(method) -> None:
    x = matrix((16, 40))
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    (found,) = orthogonalize([x], steps=30, method=method, coefficients=(1.5, -0.5, 0.0), dtype=torch.float32)
    torch.testing.assert_close(found, u @ vh, rtol=0, atol=1e-3)


def test_the_gram_form_is_the_standard_one() -> None:
    x = matrix((16, 64))
    (gram,), (plain,) = (orthogonalize([x], method=m, dtype=torch.float32) for m in ("gram", "standard"))
    torch.testing.assert_close(gram, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["standard", "gram"])
def test_a_batch_is_its_matrices_and_transposes_join_it(method, monkeypatch: pytest.MonkeyPatch) -> None:
    matrices = [matrix((8, 20), 1), matrix((20, 8), 2), matrix((5, 5), 3), matrix((8, 20), 4), matrix((8, 20), 5)]
    alone = [orthogonalize([x], method=method, dtype=torch.float32)[0] for x in matrices]
    for limit in (1 << 25, 320):  # all at once, or two at a time
        monkeypatch.setattr("ds_core.optim.newton_schulz.BATCH_NUMEL", limit)
        for got, want in zip(orthogonalize(matrices, method=method, dtype=torch.float32), alone, strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_zeros_stay_zeros() -> None:
    for method in ("standard", "gram"):
        assert not orthogonalize([torch.zeros(3, 4)], method=method)[0].any()


def test_arguments_are_left_alone() -> None:
    x = matrix((4, 4))
    before = x.clone()
    orthogonalize([x, x], dtype=torch.float32)
    assert torch.equal(x, before)


def test_what_is_not_a_matrix_is_refused() -> None:
    with pytest.raises(ModelError, match=r"only matrices can be orthogonalized, got a tensor of shape \(3,\)"):
        orthogonalize([torch.ones(3)])


def test_products_are_in_bfloat16_only_where_the_processor_has_it() -> None:
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    assert best_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
    assert orthogonalize([matrix((4, 4))])[0].dtype == best_dtype(torch.device("cpu"))
