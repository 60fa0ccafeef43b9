"""lion_: one Lion step over flat tensors, in one pass, with unscale and a low-precision copy of the result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ds_core.ops._flat_cases import CaseMaker
from ds_core.ops._flat_update import check_factor, check_flat, check_scalars, fake, walk
from ds_core.ops.case import Fill
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "LionScalars", "lion_", "lion_scalars"]


class LionScalars(NamedTuple):
    """What the hyperparameters come down to; each is used as a float32."""

    decay: float
    beta1: float
    weight1: float
    beta2: float
    weight2: float
    negative_lr: float


def lion_scalars(lr: float, beta1: float, beta2: float, weight_decay: float) -> LionScalars:
    """Computed in double precision."""
    return LionScalars(1 - lr * weight_decay, beta1, 1 - beta1, beta2, 1 - beta2, -lr)


def lion_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """Updates `param` and its one moment `exp_avg` in place: every element moves by `lr`, up or down.

    Tensors, `copy_out`, `grad_factor` and rounding are as for `ds_core.ops.adam_`; weight decay is decoupled. The sign
    of zero and of NaN is 0, as torch.sign has it, so a NaN reaches the moment first and the param never by the sign.

    Raises:
        OpError: a tensor or number is not as above.

    Source: X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023, algorithm 2.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.lion_
    call(
        param,
        grad,
        exp_avg,
        copy_out,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        weight_decay=weight_decay,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


def _check(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    grad_factor: torch.Tensor | None = None,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("lion_", param, {"grad": grad, "exp_avg": exp_avg, "copy_out": copy_out})
    check_factor("lion_", param, grad_factor, rounding_offset)
    check_scalars("lion_", beta1=beta1, beta2=beta2)


def _reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    weight_decay: float,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = lion_scalars(lr, beta1, beta2, weight_decay)
    walk(functools.partial(_update, s), param, grad, (exp_avg,), copy_out, grad_factor, rounding_seed, rounding_offset)


def _update(s: LionScalars, p: torch.Tensor, g: torch.Tensor, m: torch.Tensor) -> None:
    """float32 in place."""
    sign = (m * s.beta1).add_(g, alpha=s.weight1).sign_()
    p.mul_(s.decay).add_(sign, alpha=s.negative_lr)
    m.mul_(s.beta2).add_(g, alpha=s.weight2)


_MAKE = CaseMaker({"exp_avg": (Fill.NORMAL, 0.05)}, {"lr": 1e-3, "beta1": 0.9, "beta2": 0.99, "weight_decay": 0.01})

DEFINITIONS = (
    OpDefinition(
        schema=(
            "lion_(Tensor(a!) param, Tensor grad, Tensor(b!) exp_avg, Tensor(c!)? copy_out=None, *, float lr, "
            "float beta1, float beta2, float weight_decay, Tensor? grad_factor=None, int rounding_seed=-1, "
            "int rounding_offset=0) -> ()"
        ),
        check=_check,
        reference=_reference,
        fake=fake,
        autograd=None,
        cases=(
            *_MAKE.common(),
            _MAKE.case("no_decay", weight_decay=0.0),
            _MAKE.case("zero_betas", beta1=0.0, beta2=0.0),
            _MAKE.case("zero_gradients", fill=Fill.ZEROS, beta1=0.5),
        ),
    ),
)
