"""adam_: one Adam or AdamW step over flat tensors, in one pass, with unscale and a low-precision copy of the result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._adam_cases import CASES
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_flat, name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run
from ds_core.ops.rounding import store

__all__ = ["DEFINITIONS", "AdamScalars", "adam_", "scalars"]

CHUNK = 1 << 20
"""Elements the reference works on at a time, which bounds its temporary memory."""


class AdamScalars(NamedTuple):
    """What the hyperparameters come down to; each is used as a float32."""

    lerp_weight: float
    beta2: float
    square_weight: float
    decay: float
    weight_decay: float
    eps: float
    correction2_sqrt: float
    negative_step_size: float


def scalars(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int, bias_correction: bool
) -> AdamScalars:
    """Computed in double precision, as torch.optim does."""
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    return AdamScalars(
        lerp_weight=1 - beta1,
        beta2=beta2,
        square_weight=1 - beta2,
        decay=1 - lr * weight_decay,
        weight_decay=weight_decay,
        eps=eps,
        correction2_sqrt=correction2**0.5,
        negative_step_size=-(lr / correction1),
    )


def adam_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """Updates `param`, `exp_avg` and `exp_avg_sq` in place.

    All tensors are 1-D, dense, of one length (0 is fine) and on one device; each is float32, bfloat16 or float16, the
    two states alike. Arithmetic is in float32 in the order that ``ds_kernel.h`` states, which is torch's: on float32
    tensors the result is bit-equal to torch.optim's fused Adam, see Note [Bit-equal to torch].

    Args:
        copy_out: receives `param` rounded to its dtype, for example the bfloat16 working weights.
        step: counts from 1.
        adamw: decoupled weight decay; False adds ``weight_decay * param`` to the gradient.
        grad_factor: 0-dim float32 tensor multiplied into every gradient (unscale, clip, 1/ranks); None is 1.
        rounding_seed: 0 or more writes low-precision `param` and states with stochastic rounding.
        rounding_offset: index of the first element in the rounding sequence, so that pieces of one tensor draw what
            the whole tensor would.

    Raises:
        OpError: a tensor or number is not as above.

    Source: D. Kingma, J. Ba, "Adam", ICLR 2015, algorithm 1; I. Loshchilov, F. Hutter, "Decoupled weight decay
    regularization", ICLR 2019, algorithm 2.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.adam_
    call(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        copy_out,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        adamw=adamw,
        bias_correction=bias_correction,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


def _check(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    numel, device = param.numel(), param.device
    for name, tensor in (
        ("param", param),
        ("grad", grad),
        ("exp_avg", exp_avg),
        ("exp_avg_sq", exp_avg_sq),
        ("copy_out", copy_out),
    ):
        if tensor is None:
            continue
        if tensor.dim() != 1 or not tensor.is_contiguous():
            expect_flat("adam_", name, tensor)
        if tensor.numel() != numel:
            raise OpError(f"adam_: {name} must have {numel} elements like param, got {tensor.numel()}.")
        if tensor.dtype not in FLOATS:
            expect_dtype("adam_", name, tensor)
        if tensor.device != device:
            expect_device("adam_", name, tensor, "param", device)
    if exp_avg_sq.dtype != exp_avg.dtype:
        raise OpError(
            f"adam_: exp_avg_sq must be {name_of(exp_avg.dtype)} like exp_avg, got {name_of(exp_avg_sq.dtype)}."
        )
    if grad_factor is not None and (grad_factor.dim() != 0 or grad_factor.dtype != torch.float32):
        raise OpError(
            "adam_: grad_factor must be a 0-dim float32 tensor, got "
            f"{name_of(grad_factor.dtype)} of shape {tuple(grad_factor.shape)}."
        )
    if grad_factor is not None and grad_factor.device != device:
        expect_device("adam_", "grad_factor", grad_factor, "param", device)
    if step < 1:
        raise OpError(f"adam_: step must be 1 or more (the first update is step 1), got {step}.")
    if not (0.0 <= beta1 < 1.0 and 0.0 <= beta2 < 1.0):
        raise OpError(f"adam_: beta1 and beta2 must be in [0, 1), got {beta1} and {beta2}.")
    if rounding_offset < 0:
        raise OpError(f"adam_: rounding_offset must be 0 or more, got {rounding_offset}.")


def _reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    adamw: bool = True,
    bias_correction: bool = True,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = scalars(lr, beta1, beta2, eps, weight_decay, step, bias_correction)
    with torch.no_grad():
        for first in range(0, param.numel(), CHUNK):
            span = slice(first, min(first + CHUNK, param.numel()))
            p, m, v = (t[span].to(torch.float32) for t in (param, exp_avg, exp_avg_sq))
            _update(p, _gradient(grad[span], grad_factor), m, v, s, adamw)
            for stream, (value, out) in enumerate(((p, param), (m, exp_avg), (v, exp_avg_sq))):
                if out.dtype != torch.float32:
                    store(value, out[span], rounding_seed, stream, rounding_offset + first)
            if copy_out is not None:
                copy_out[span].copy_(param[span])


def _gradient(grad: torch.Tensor, factor: torch.Tensor | None) -> torch.Tensor:
    values = grad.to(torch.float32)
    return values if factor is None else values * factor


def _update(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, s: AdamScalars, adamw: bool) -> None:
    """float32 in place.

    Note [Bit-equal to torch]
        These are the operations of torch.optim's single-tensor Adam in its order, each fused or rounded as torch's
        vectorized kernels do it, except the square root: torch's contiguous float32 sqrt on the CPU comes from a vector
        library that is off by one unit now and then, its fused optimizer's is correctly rounded. This takes the
        correctly rounded one, by way of double precision, so it is bit-equal to the fused optimizer.
    """
    if adamw:
        p.mul_(s.decay)
    else:
        g = g.add(p, alpha=s.weight_decay)
    m.lerp_(g, s.lerp_weight)
    v.mul_(s.beta2).addcmul_(g, g, value=s.square_weight)
    root = v.double().sqrt_().float() if v.device.type == "cpu" else v.sqrt()
    denominator = root.div_(s.correction2_sqrt).add_(s.eps)
    p.addcdiv_(m, denominator, value=s.negative_step_size)


def _fake(param: torch.Tensor, *args: object, **kwargs: object) -> None:
    return None


DEFINITIONS = (
    OpDefinition(
        schema=(
            "adam_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
            "Tensor(d!)? copy_out=None, *, float lr, float beta1, float beta2, float eps, float weight_decay, "
            "int step, bool adamw=True, bool bias_correction=True, Tensor? grad_factor=None, "
            "int rounding_seed=-1, int rounding_offset=0) -> ()"
        ),
        check=_check,
        reference=_reference,
        fake=_fake,
        autograd=None,
        cases=CASES,
    ),
)
