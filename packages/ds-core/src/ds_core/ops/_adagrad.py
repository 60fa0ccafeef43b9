"""adagrad_: one Adagrad step over flat tensors, in one pass, with unscale and a low-precision copy of the result."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ds_core.ops._flat_cases import CaseMaker
from ds_core.ops._flat_update import check_factor, check_flat, check_scalars, fake, root, walk
from ds_core.ops.case import Fill
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "AdagradScalars", "adagrad_", "adagrad_scalars"]


class AdagradScalars(NamedTuple):
    """What the hyperparameters come down to; each is used as a float32."""

    weight_decay: float
    eps: float
    negative_step_size: float


def adagrad_scalars(lr: float, eps: float, weight_decay: float, step: int, lr_decay: float) -> AdagradScalars:
    """Computed in double precision, as torch.optim does."""
    return AdagradScalars(weight_decay, eps, -(lr / (1 + (step - 1) * lr_decay)))


def adagrad_(
    param: torch.Tensor,
    grad: torch.Tensor,
    state_sum: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr_decay: float = 0.0,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """Updates `param` and `state_sum`, the sum of squared gradients, in place.

    Tensors, `copy_out`, `grad_factor` and rounding are as for `ds_core.ops.adam_`; weight decay is added to the
    gradient. On float32 tensors the result is bit-equal to torch.optim.Adagrad's but for the square root, which here
    is correctly rounded and in torch off by a unit now and then.

    Raises:
        OpError: a tensor or number is not as above.

    Source: J. Duchi, E. Hazan, Y. Singer, "Adaptive subgradient methods for online learning and stochastic
    optimization", JMLR 12, 2011, figure 1 with a diagonal matrix.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.adagrad_
    call(
        param,
        grad,
        state_sum,
        copy_out,
        lr=lr,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        lr_decay=lr_decay,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


def _check(
    param: torch.Tensor,
    grad: torch.Tensor,
    state_sum: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    step: int,
    grad_factor: torch.Tensor | None = None,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("adagrad_", param, {"grad": grad, "state_sum": state_sum, "copy_out": copy_out})
    check_factor("adagrad_", param, grad_factor, rounding_offset)
    check_scalars("adagrad_", step=step)


def _reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    state_sum: torch.Tensor,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    eps: float,
    weight_decay: float,
    step: int,
    lr_decay: float = 0.0,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = adagrad_scalars(lr, eps, weight_decay, step, lr_decay)
    walk(
        functools.partial(_update, s), param, grad, (state_sum,), copy_out, grad_factor, rounding_seed, rounding_offset
    )


def _update(s: AdagradScalars, p: torch.Tensor, g: torch.Tensor, total: torch.Tensor) -> None:
    """float32 in place, in the order of torch.optim's single-tensor Adagrad."""
    if s.weight_decay != 0:
        g = g.add(p, alpha=s.weight_decay)
    total.addcmul_(g, g, value=1)
    p.addcdiv_(g, root(total).add_(s.eps), value=s.negative_step_size)


_MAKE = CaseMaker({"state_sum": (Fill.SQUARES, 0.3)}, {"lr": 1e-2, "eps": 1e-10, "weight_decay": 0.01, "step": 3})

DEFINITIONS = (
    OpDefinition(
        schema=(
            "adagrad_(Tensor(a!) param, Tensor grad, Tensor(b!) state_sum, Tensor(c!)? copy_out=None, *, float lr, "
            "float eps, float weight_decay, int step, float lr_decay=0.0, Tensor? grad_factor=None, "
            "int rounding_seed=-1, int rounding_offset=0) -> ()"
        ),
        check=_check,
        reference=_reference,
        fake=fake,
        autograd=None,
        cases=(
            *_MAKE.common(),
            _MAKE.case("no_decay", weight_decay=0.0),
            _MAKE.case("rate_decays", lr_decay=0.1, step=7),
            _MAKE.case("zero_eps", eps=0.0),
        ),
    ),
)
