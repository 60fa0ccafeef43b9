"""sgd_: one step of gradient descent with momentum over flat tensors, in one pass, with unscale and a rounded copy."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._flat_cases import CaseMaker
from ds_core.ops._flat_update import check_factor, check_flat, fake, walk
from ds_core.ops.case import Fill
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "SgdScalars", "sgd_", "sgd_scalars"]


class SgdScalars(NamedTuple):
    """What the hyperparameters come down to; each is used as a float32."""

    weight_decay: float
    momentum: float
    grad_weight: float
    negative_lr: float


def sgd_scalars(lr: float, momentum: float, dampening: float, weight_decay: float) -> SgdScalars:
    """Computed in double precision, as torch.optim does."""
    return SgdScalars(weight_decay, momentum, 1 - dampening, -lr)


def sgd_(
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum_buffer: torch.Tensor | None = None,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    is_first: bool = False,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """Updates `param`, and `momentum_buffer` where there is one, in place.

    Tensors, `copy_out`, `grad_factor` and rounding are as for `ds_core.ops.adam_`; weight decay is added to the
    gradient. On float32 tensors the result is bit-equal to torch.optim.SGD's.

    Args:
        momentum_buffer: must be given exactly if `momentum` is not 0.
        nesterov: the step looks ahead along the momentum.
        is_first: the buffer has no values yet and takes the gradient, undampened.

    Raises:
        OpError: a tensor or number is not as above.

    Source: I. Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013,
    section 2, in the form of torch.optim.SGD.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.sgd_
    call(
        param,
        grad,
        momentum_buffer,
        copy_out,
        lr=lr,
        momentum=momentum,
        dampening=dampening,
        weight_decay=weight_decay,
        nesterov=nesterov,
        is_first=is_first,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


def _check(
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum_buffer: torch.Tensor | None = None,
    copy_out: torch.Tensor | None = None,
    *,
    momentum: float = 0.0,
    grad_factor: torch.Tensor | None = None,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("sgd_", param, {"grad": grad, "momentum_buffer": momentum_buffer, "copy_out": copy_out})
    check_factor("sgd_", param, grad_factor, rounding_offset)
    if (momentum != 0) != (momentum_buffer is not None):
        given = "none" if momentum_buffer is None else "one"
        raise OpError(
            f"sgd_: momentum_buffer must be given exactly if momentum is not 0, got {given} and momentum {momentum}."
        )


def _reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    momentum_buffer: torch.Tensor | None = None,
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    is_first: bool = False,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = sgd_scalars(lr, momentum, dampening, weight_decay)
    states = () if momentum_buffer is None else (momentum_buffer,)
    update = functools.partial(_update, s, nesterov, is_first)
    walk(update, param, grad, states, copy_out, grad_factor, rounding_seed, rounding_offset)


def _update(
    s: SgdScalars,
    nesterov: bool,
    is_first: bool,
    p: torch.Tensor,
    g: torch.Tensor,
    buffer: torch.Tensor | None = None,
) -> None:
    """float32 in place, in the order of torch.optim's single-tensor SGD."""
    if s.weight_decay != 0:
        g = g.add(p, alpha=s.weight_decay)
    if buffer is not None:
        if is_first:
            buffer.copy_(g)
        else:
            buffer.mul_(s.momentum).add_(g, alpha=s.grad_weight)
        g = g.add(buffer, alpha=s.momentum) if nesterov else buffer
    p.add_(g, alpha=s.negative_lr)


_MAKE = CaseMaker({"momentum_buffer": (Fill.NORMAL, 0.2)}, {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.01})
_PLAIN = CaseMaker({}, {"lr": 1e-2})

DEFINITIONS = (
    OpDefinition(
        schema=(
            "sgd_(Tensor(a!) param, Tensor grad, Tensor(b!)? momentum_buffer=None, Tensor(c!)? copy_out=None, *, "
            "float lr, float momentum=0.0, float dampening=0.0, float weight_decay=0.0, bool nesterov=False, "
            "bool is_first=False, Tensor? grad_factor=None, int rounding_seed=-1, int rounding_offset=0) -> ()"
        ),
        check=_check,
        reference=_reference,
        fake=fake,
        autograd=None,
        cases=(
            *_MAKE.common(),
            _MAKE.case("first", is_first=True, dampening=0.5),
            _MAKE.case("first_nesterov", is_first=True, nesterov=True),
            _MAKE.case("first_from_nothing", is_first=True, state="bfloat16", grad="bfloat16"),
            _MAKE.case("dampened", dampening=0.3),
            _MAKE.case("nesterov", nesterov=True, weight_decay=0.0),
            _MAKE.case("nesterov_decays", nesterov=True),
            _PLAIN.case("plain"),
            _PLAIN.case("plain_empty", 0),
            _PLAIN.case("plain_decays", 4099, weight_decay=0.1, param="bfloat16", copy="float16", rounding_seed=3),
            _PLAIN.case("plain_special", 4099, fill=Fill.SPECIAL),
        ),
    ),
)
