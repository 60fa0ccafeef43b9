"""adam8bit_: one Adam or AdamW step whose moments are a byte an element, in one pass."""

from __future__ import annotations

import functools

import torch

from ds_core.errors import OpError
from ds_core.ops._adam import scalars, update
from ds_core.ops._adam8bit_cases import CASES
from ds_core.ops._flat_update import check_factor, check_flat, check_scalars, fake, gradient
from ds_core.ops.checks import expect_dtype, expect_flat
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run
from ds_core.ops.rounding import store

__all__ = ["BLOCK_SIZES", "DEFINITIONS", "adam8bit_", "decode", "encode", "tree"]

BLOCK_SIZES = (256, 512, 1024, 2048, 4096)
"""Elements that may share a scale."""


def adam8bit_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    exp_avg_scale: torch.Tensor,
    exp_avg_sq_scale: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    block_size: int = 2048,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """As `ds_core.ops.adam_`, with both moments decoded before the update and encoded after it, block by block.

    Zeros in all four state tensors are zero moments. The update itself uses the moments before they are encoded.

    Args:
        exp_avg: uint8 codes, as many as `param` has elements; so `exp_avg_sq`.
        exp_avg_scale: float32, the largest magnitude of each block of `block_size` elements; so `exp_avg_sq_scale`.
        block_size: one of `BLOCK_SIZES`.
        rounding_seed: as for `adam_`, for `param` only; codes are always the nearest.

    Raises:
        OpError: a tensor or number is not as above.

    Source: T. Dettmers et al., "8-bit optimizers via block-wise quantization", ICLR 2022; `tree` says what differs.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.adam8bit_
    call(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        exp_avg_scale,
        exp_avg_sq_scale,
        copy_out,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        block_size=block_size,
        adamw=adamw,
        bias_correction=bias_correction,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


@functools.cache
def tree(codes: int) -> torch.Tensor:
    """Values of the codes of a dynamic tree, ascending, float32 on the CPU.

    The number of leading zeros of a code is the decade, what follows the first one is a linear fraction: half of the
    codes lie in (0.1, 1], a quarter in (0.01, 0.1], and so on. Unlike the paper's, whose values are the means of the
    linear cells, these are their upper ends, so that 1 is a code and the largest element of a block keeps its value.

    Args:
        codes: 128 for magnitudes of what has a sign, 256 for what has none.
    """
    values, scale, k = [0.0] * codes, 1.0, codes // 2
    while k >= 1:
        for j in range(1, k + 1):
            values[k + j - 1] = (0.1 + 0.9 * j / k) / scale
        k, scale = k // 2, scale * 10.0
    return torch.tensor(values, dtype=torch.float64).to(torch.float32)


def decode(codes: torch.Tensor, scales: torch.Tensor, block_size: int, *, signed: bool) -> torch.Tensor:
    """float32 values of 1-D `codes`."""
    index = codes.to(torch.int64)
    values = tree(128 if signed else 256).to(codes.device)[index & 127 if signed else index]
    values = values * scales.repeat_interleave(block_size)[: codes.numel()]
    return torch.where(index >= 128, -values, values) if signed else values


def encode(x: torch.Tensor, block_size: int, *, signed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes (uint8) and scales (float32, one a block) of 1-D float32 `x`."""
    blocks = -(-x.numel() // block_size)
    padded = x.new_zeros(blocks * block_size)
    padded[: x.numel()] = x
    magnitude = padded.view(torch.int32) & 0x7FFFFFFF  # as integers NaN is above infinity, infinity above numbers
    scales = magnitude.view(blocks, block_size).amax(1).view(torch.float32) if blocks else x.new_zeros(0)
    usable = (scales >= torch.finfo(torch.float32).tiny) & scales.isfinite()
    share = magnitude.view(torch.float32).view(blocks, block_size) / torch.where(usable, scales, 1.0)[:, None]
    values = tree(128 if signed else 256).to(x.device)
    codes = torch.bucketize(share, (values[:-1] + values[1:]) * 0.5)
    codes = torch.where(usable[:, None], codes, 0)
    if signed:
        codes = codes + 128 * (padded.view(blocks, block_size).signbit() & (codes > 0))
    return codes.to(torch.uint8).view(-1)[: x.numel()], scales


def _check(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    exp_avg_scale: torch.Tensor,
    exp_avg_sq_scale: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    step: int,
    block_size: int = 2048,
    grad_factor: torch.Tensor | None = None,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("adam8bit_", param, {"grad": grad, "copy_out": copy_out})
    if block_size not in BLOCK_SIZES:
        raise OpError(f"adam8bit_: block_size must be one of {', '.join(map(str, BLOCK_SIZES))}, got {block_size}.")
    blocks = -(-param.numel() // block_size)
    for name, tensor, numel, dtype in (
        ("exp_avg", exp_avg, param.numel(), torch.uint8),
        ("exp_avg_sq", exp_avg_sq, param.numel(), torch.uint8),
        ("exp_avg_scale", exp_avg_scale, blocks, torch.float32),
        ("exp_avg_sq_scale", exp_avg_sq_scale, blocks, torch.float32),
    ):
        expect_flat("adam8bit_", name, tensor)
        expect_dtype("adam8bit_", name, tensor, (dtype,))
        if tensor.numel() != numel:
            raise OpError(f"adam8bit_: {name} must have {numel} elements, got {tensor.numel()}.")
    check_factor("adam8bit_", param, grad_factor, rounding_offset)
    check_scalars("adam8bit_", step=step, beta1=beta1, beta2=beta2)


def _reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    exp_avg_scale: torch.Tensor,
    exp_avg_sq_scale: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    block_size: int = 2048,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction)
    chunk = 256 * block_size
    with torch.no_grad():
        for first in range(0, param.numel(), chunk):
            span = slice(first, min(first + chunk, param.numel()))
            blocks = slice(first // block_size, -(-span.stop // block_size))
            p = param[span].to(torch.float32)
            m = decode(exp_avg[span], exp_avg_scale[blocks], block_size, signed=True)
            v = decode(exp_avg_sq[span], exp_avg_sq_scale[blocks], block_size, signed=False)
            update(p, gradient(grad[span], grad_factor), m, v, s, adamw)
            if param.dtype != torch.float32:
                store(p, param[span], rounding_seed, 0, rounding_offset + first)
            exp_avg[span], exp_avg_scale[blocks] = encode(m, block_size, signed=True)
            exp_avg_sq[span], exp_avg_sq_scale[blocks] = encode(v, block_size, signed=False)
            if copy_out is not None:
                copy_out[span].copy_(param[span])


DEFINITIONS = (
    OpDefinition(
        schema=(
            "adam8bit_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
            "Tensor(d!) exp_avg_scale, Tensor(e!) exp_avg_sq_scale, Tensor(f!)? copy_out=None, *, float lr, "
            "float beta1, float beta2, float eps, float weight_decay, int step, int block_size=2048, "
            "bool adamw=True, bool bias_correction=True, Tensor? grad_factor=None, int rounding_seed=-1, "
            "int rounding_offset=0) -> ()"
        ),
        check=_check,
        reference=_reference,
        fake=fake,
        autograd=None,
        cases=CASES,
    ),
)
