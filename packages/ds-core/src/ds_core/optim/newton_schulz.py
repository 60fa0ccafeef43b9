"""`orthogonalize`: the nearest matrices with orthonormal rows, roughly, by a few matrix products each.

Note [Which products]
    Muon needs a rough answer only, so the iteration runs in bfloat16 where the processor multiplies it natively
    (through oneDNN, two to three times as fast as float32) and in float32 elsewhere. The Gram form is always in
    float32: it iterates on X X^T, whose smallest eigenvalues are the squares of small singular values and would drown
    in the rounding of bfloat16, turn negative and grow.

Source: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024 (the quintic coefficients and
    the iteration); the Gram form follows from it because every iterate is a polynomial in X X^T times X.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from ds_core.accelerator import computes_in
from ds_core.errors import ModelError

__all__ = ["COEFFICIENTS", "Method", "batches", "best_dtype", "orthogonalize"]

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: steep at 0, and singular values end between about 0.7 and 1.2 rather than at 1."""

Method = Literal["gram", "standard"]

BATCH_NUMEL = 1 << 25
"""Elements that are stacked for one batched product, which bounds the memory of a step."""


def best_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where matrices of it are multiplied natively, else float32; see Note [Which products]."""
    if device.type != "cpu":
        return torch.bfloat16 if computes_in(device, torch.bfloat16) else torch.float32
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


@torch.no_grad()
def orthogonalize(
    matrices: Sequence[torch.Tensor],
    *,
    steps: int = 5,
    method: Method = "standard",
    coefficients: tuple[float, float, float] = COEFFICIENTS,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> list[torch.Tensor]:
    """For each matrix U S V^T roughly U V^T, of the same shape.

    Matrices of equal shape, a transposed one among them, are multiplied in batches.

    Args:
        matrices: 2-D, on one device, of any floating dtype; left alone.
        steps: iterations; each brings singular values above 0.01 nearer to 1.
        method: ``"gram"`` needs fewer operations the longer one side is than the other (from about 2:1 on).
        coefficients: of x, x^3 and x^5.
        eps: smallest norm that is divided by.
        dtype: of the products in the standard method; None is `best_dtype`. The Gram form takes float32.

    Raises:
        ModelError: a tensor is not a matrix.
    """
    results: dict[int, torch.Tensor] = {}
    for chosen in batches(matrices):
        wide = [_wide(matrices[index]) for index in chosen]
        kind = torch.float32 if method == "gram" else dtype or best_dtype(wide[0].device)
        iterate = _gram if method == "gram" else _standard
        found = iterate(_scaled([matrix.to(kind) for matrix in wide], eps), steps, coefficients)
        for index, answer in zip(chosen, found, strict=True):
            results[index] = answer.T if matrices[index].shape[0] > matrices[index].shape[1] else answer
    return [results[index] for index in range(len(matrices))]


def batches(matrices: Sequence[torch.Tensor]) -> list[list[int]]:
    """Which matrices are multiplied together: of one shape, up to transposition, and `BATCH_NUMEL` elements at most.

    Raises:
        ModelError: a tensor is not a matrix.
    """
    stacks: dict[tuple[int, ...], list[int]] = {}
    for index, matrix in enumerate(matrices):
        if matrix.dim() != 2:
            raise ModelError(f"only matrices can be orthogonalized, got a tensor of shape {tuple(matrix.shape)}.")
        stacks.setdefault(tuple(sorted(matrix.shape)), []).append(index)
    found = []
    for (rows, columns), members in stacks.items():
        size = max(1, BATCH_NUMEL // max(1, rows * columns))
        found += [members[first : first + size] for first in range(0, len(members), size)]
    return found


def _wide(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.T if matrix.shape[0] > matrix.shape[1] else matrix


def _scaled(matrices: list[torch.Tensor], eps: float) -> torch.Tensor:
    """One matrix as it is, or a batch; divided by the Frobenius norm, so that no singular value is above 1."""
    parts = [matrix / matrix.norm().clamp(min=eps) for matrix in matrices]
    return parts[0] if len(parts) == 1 else torch.stack(parts)


def _standard(x: torch.Tensor, steps: int, coefficients: tuple[float, float, float]) -> list[torch.Tensor]:
    """X <- a X + (b G + c G G) X with G = X X^T."""
    a, b, c = coefficients
    addmm = torch.addmm if x.dim() == 2 else torch.baddbmm
    for _ in range(steps):
        gram = x @ x.mT
        x = addmm(x, addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return [x] if x.dim() == 2 else list(x)


def _gram(x: torch.Tensor, steps: int, coefficients: tuple[float, float, float]) -> list[torch.Tensor]:
    """The same iterates by their polynomials: Z = a I + b G + c G G, then X <- Z X and G <- Z G Z.

    X itself is multiplied once, by the product of all Z.
    """
    a, b, c = coefficients
    addmm = torch.addmm if x.dim() == 2 else torch.baddbmm
    gram = x @ x.mT
    product: torch.Tensor | None = None
    for step in range(steps):
        z = addmm(gram, gram, gram, beta=b, alpha=c)
        z.diagonal(dim1=-2, dim2=-1).add_(a)
        product = z if product is None else z @ product
        if step + 1 < steps:
            gram = z @ gram @ z
    x = x if product is None else product @ x
    return [x] if x.dim() == 2 else list(x)
