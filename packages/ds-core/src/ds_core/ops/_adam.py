"""adam_: one Adam or AdamW step over flat tensors, in one pass, with unscale and a low-precision copy of the result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._adam_cases import CASES
from ds_core.ops._flat_update import check_factor, check_flat, check_scalars, fake, root, walk
from ds_core.ops.checks import name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "AdamScalars", "adam_", "scalars", "update"]


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
    check_flat("adam_", param, {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "copy_out": copy_out})
    if exp_avg_sq.dtype != exp_avg.dtype:
        raise OpError(
            f"adam_: exp_avg_sq must be {name_of(exp_avg.dtype)} like exp_avg, got {name_of(exp_avg_sq.dtype)}."
        )
    check_factor("adam_", param, grad_factor, rounding_offset)
    check_scalars("adam_", step=step, beta1=beta1, beta2=beta2)


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
    walk(
        functools.partial(update, s=s, adamw=adamw),
        param,
        grad,
        (exp_avg, exp_avg_sq),
        copy_out,
        grad_factor,
        rounding_seed,
        rounding_offset,
    )


def update(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor, s: AdamScalars, adamw: bool) -> None:
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
    denominator = root(v).div_(s.correction2_sqrt).add_(s.eps)
    p.addcdiv_(m, denominator, value=s.negative_step_size)


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
        fake=fake,
        autograd=None,
        cases=CASES,
    ),
)
