"""lamb_moments_ and lamb_apply_: a LAMB step in two passes over flat tensors, with the norms of segments between."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._flat_update import check_factor, check_flat, check_scalars, gradient, root
from ds_core.ops._lamb_cases import APPLY_CASES, MOMENTS_CASES
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run
from ds_core.ops.rounding import store

__all__ = ["DEFINITIONS", "LambScalars", "lamb_apply_", "lamb_moments_", "lamb_scalars"]

UNIT = 1 << 16
"""Elements of a segment that are added up apart."""

LANES = 16
"""Sums that a unit is added up in."""


class LambScalars(NamedTuple):
    """What the hyperparameters of the direction come down to; each is used as a float32."""

    correction1: float
    correction2: float
    eps: float
    weight_decay: float


def lamb_scalars(
    beta1: float, beta2: float, eps: float, weight_decay: float, step: int, bias_correction: bool
) -> LambScalars:
    """Computed in double precision."""
    correction1 = 1 - beta1**step if bias_correction else 1.0
    correction2 = 1 - beta2**step if bias_correction else 1.0
    return LambScalars(correction1, correction2, eps, weight_decay)


def lamb_moments_(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    bounds: Sequence[int],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> torch.Tensor:
    """Updates both moments in place, and adds up the squares of `param` and of the direction LAMB would move it in.

    Tensors, `grad_factor` and rounding are as for `ds_core.ops.adam_`. Sums are the same for any number of threads.

    Args:
        bounds: start and stop of each segment, flat: ``[start, stop, start, stop, ..]``. Segments must not overlap;
            what lies in none is not touched.

    Returns:
        float64 of shape (segments, 2): sums of squares of the param and of the direction.

    Raises:
        OpError: a tensor or number is not as above.

    Source: Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020,
    algorithm 2.
    """
    call = functools.partial(run, DEFINITIONS[0]) if is_plain(param) else torch.ops.ds.lamb_moments_
    sums: torch.Tensor = call(
        param,
        grad,
        exp_avg,
        exp_avg_sq,
        bounds,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        bias_correction=bias_correction,
        eps_inside_sqrt=eps_inside_sqrt,
        grad_factor=grad_factor,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )
    return sums


def lamb_apply_(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    ratios: torch.Tensor,
    bounds: Sequence[int],
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    """Moves each segment of `param` against its direction by ``lr * ratios[segment]``.

    The direction is computed from the moments as they are stored, so it is the one `lamb_moments_` measured.

    Args:
        ratios: float32, one a segment: the trust ratios.
        bounds: as for `lamb_moments_`; so are the hyperparameters.
        copy_out: receives the segments of `param` rounded to its dtype.

    Raises:
        OpError: a tensor or number is not as above.
    """
    call = functools.partial(run, DEFINITIONS[1]) if is_plain(param) else torch.ops.ds.lamb_apply_
    call(
        param,
        exp_avg,
        exp_avg_sq,
        ratios,
        bounds,
        copy_out,
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=eps,
        weight_decay=weight_decay,
        step=step,
        bias_correction=bias_correction,
        eps_inside_sqrt=eps_inside_sqrt,
        rounding_seed=rounding_seed,
        rounding_offset=rounding_offset,
    )


def _check_moments(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    bounds: Sequence[int],
    *,
    beta1: float,
    beta2: float,
    step: int,
    grad_factor: torch.Tensor | None = None,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("lamb_moments_", param, {"grad": grad, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq})
    _check_common("lamb_moments_", param, exp_avg, exp_avg_sq, bounds)
    check_factor("lamb_moments_", param, grad_factor, rounding_offset)
    check_scalars("lamb_moments_", step=step, beta1=beta1, beta2=beta2)


def _check_apply(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    ratios: torch.Tensor,
    bounds: Sequence[int],
    copy_out: torch.Tensor | None = None,
    *,
    beta1: float,
    beta2: float,
    step: int,
    rounding_offset: int = 0,
    **_: float,
) -> None:
    check_flat("lamb_apply_", param, {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "copy_out": copy_out})
    _check_common("lamb_apply_", param, exp_avg, exp_avg_sq, bounds)
    check_factor("lamb_apply_", param, None, rounding_offset)
    check_scalars("lamb_apply_", step=step, beta1=beta1, beta2=beta2)
    if ratios.dtype != torch.float32 or tuple(ratios.shape) != (len(bounds) // 2,) or not ratios.is_contiguous():
        raise OpError(
            f"lamb_apply_: ratios must be float32 of shape ({len(bounds) // 2},), one a segment, got "
            f"{ratios.dtype} of shape {tuple(ratios.shape)}."
        )


def _check_common(
    op: str, param: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, bounds: Sequence[int]
) -> None:
    if exp_avg.dtype != exp_avg_sq.dtype:
        raise OpError(f"{op}: exp_avg_sq must be {exp_avg.dtype} like exp_avg, got {exp_avg_sq.dtype}.")
    if len(bounds) % 2:
        raise OpError(f"{op}: bounds must be pairs of start and stop, got {len(bounds)} numbers.")
    for start, stop in zip(bounds[::2], bounds[1::2], strict=True):
        if not 0 <= start <= stop <= param.numel():
            raise OpError(f"{op}: a segment must lie within {param.numel()} elements, got {start} to {stop}.")


def _moments_reference(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    bounds: Sequence[int],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
    grad_factor: torch.Tensor | None = None,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> torch.Tensor:
    s = lamb_scalars(beta1, beta2, eps, weight_decay, step, bias_correction)
    sums = param.new_zeros((len(bounds) // 2, 2), dtype=torch.float64)
    with torch.no_grad():
        for segment, first, span in _spans(bounds):
            g = gradient(grad[span], grad_factor)
            m, v = (t[span].to(torch.float32, copy=True) for t in (exp_avg, exp_avg_sq))
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
            store(m, exp_avg[span], rounding_seed, 1, rounding_offset + first)
            store(v, exp_avg_sq[span], rounding_seed, 2, rounding_offset + first)
            u = _direction(param[span], exp_avg[span], exp_avg_sq[span], s, eps_inside_sqrt)
            sums[segment, 0] += _unit_sum(param[span])
            sums[segment, 1] += _unit_sum(u)
    return sums


def _apply_reference(
    param: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    ratios: torch.Tensor,
    bounds: Sequence[int],
    copy_out: torch.Tensor | None = None,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
    bias_correction: bool = True,
    eps_inside_sqrt: bool = False,
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    s = lamb_scalars(beta1, beta2, eps, weight_decay, step, bias_correction)
    sizes = (ratios * -lr).tolist()
    with torch.no_grad():
        for segment, first, span in _spans(bounds):
            u = _direction(param[span], exp_avg[span], exp_avg_sq[span], s, eps_inside_sqrt)
            p = param[span].to(torch.float32).add(u, alpha=sizes[segment])
            store(p, param[span], rounding_seed, 0, rounding_offset + first)
            if copy_out is not None:
                copy_out[span].copy_(param[span])


def _spans(bounds: Sequence[int]) -> Iterator[tuple[int, int, slice]]:
    """(segment, first element, elements) of every unit, in order."""
    for segment, (start, stop) in enumerate(zip(bounds[::2], bounds[1::2], strict=True)):
        for first in range(start, stop, UNIT):
            yield segment, first, slice(first, min(first + UNIT, stop))


def _direction(
    param: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, s: LambScalars, eps_inside_sqrt: bool
) -> torch.Tensor:
    p, m, v = (t.to(torch.float32) for t in (param, exp_avg, exp_avg_sq))
    v = v / s.correction2
    denominator = root(v.add_(s.eps)) if eps_inside_sqrt else root(v).add_(s.eps)
    return (m / s.correction1).div_(denominator).add_(p, alpha=s.weight_decay)


def _unit_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of squares of a unit, in the order that ds_kernel.h states; a running sum adds one after the other."""
    wide = torch.zeros(-(-x.numel() // LANES) * LANES, dtype=torch.float64, device=x.device)
    wide[: x.numel()] = x.to(torch.float64).square_()
    lanes = wide.view(-1, LANES).cumsum(0)[-1]
    while lanes.numel() > 1:
        half = lanes.numel() // 2
        lanes = lanes[:half] + lanes[half:]
    return lanes[0]


def _fake_moments(
    param: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    bounds: Sequence[int],
    **_: object,
) -> torch.Tensor:
    return param.new_empty((len(bounds) // 2, 2), dtype=torch.float64)


def _fake_apply(param: torch.Tensor, *args: object, **kwargs: object) -> None:
    return None


DEFINITIONS = (
    OpDefinition(
        schema=(
            "lamb_moments_(Tensor param, Tensor grad, Tensor(a!) exp_avg, Tensor(b!) exp_avg_sq, int[] bounds, *, "
            "float beta1, float beta2, float eps, float weight_decay, int step, bool bias_correction=True, "
            "bool eps_inside_sqrt=False, Tensor? grad_factor=None, int rounding_seed=-1, int rounding_offset=0) "
            "-> Tensor"
        ),
        check=_check_moments,
        reference=_moments_reference,
        fake=_fake_moments,
        autograd=None,
        cases=MOMENTS_CASES,
    ),
    OpDefinition(
        schema=(
            "lamb_apply_(Tensor(a!) param, Tensor exp_avg, Tensor exp_avg_sq, Tensor ratios, int[] bounds, "
            "Tensor(b!)? copy_out=None, *, float lr, float beta1, float beta2, float eps, float weight_decay, "
            "int step, bool bias_correction=True, bool eps_inside_sqrt=False, int rounding_seed=-1, "
            "int rounding_offset=0) -> ()"
        ),
        check=_check_apply,
        reference=_apply_reference,
        fake=_fake_apply,
        autograd=None,
        cases=APPLY_CASES,
    ),
)
