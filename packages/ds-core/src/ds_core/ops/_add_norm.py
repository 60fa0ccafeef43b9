"""add_rms_norm and add_layer_norm: a residual added and the sum normalized, in one op with both as results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from ds_core.ops import _layer_norm, _rms_norm
from ds_core.ops.case import Exactness, OpCase, TensorSpec
from ds_core.ops.checks import expect_like
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "add_layer_norm", "add_rms_norm"]

_RMS_FORWARD, _RMS_BACKWARD = _rms_norm.DEFINITIONS
_LAYER_FORWARD, _LAYER_BACKWARD = _layer_norm.DEFINITIONS


def add_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, total): ``total = x + residual``, rounded to the dtype of `x`, and ``y = rms_norm(total, weight, eps)``.

    Differentiable in the three tensors, through both results.

    Args:
        x, residual: [..., columns], one shape and dtype.
        weight, eps: as `ds_core.ops.rms_norm`.

    Raises:
        OpError: a shape, dtype or device does not fit.
    """
    if is_plain(x) and not _wanted(x, residual, weight):
        y, total, _ = run(DEFINITIONS[0], x, residual, weight, eps)
    else:
        y, total, _ = torch.ops.ds.add_rms_norm_forward(x, residual, weight, eps)
    return y, total


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(y, total): ``total = x + residual``, rounded to the dtype of `x`, and `y` its `ds_core.ops.layer_norm`.

    Differentiable in the four tensors, through both results. Arguments and errors as `add_rms_norm`.
    """
    if is_plain(x) and not _wanted(x, residual, weight, bias):
        y, total, _, _ = run(DEFINITIONS[2], x, residual, weight, bias, eps)
    else:
        y, total, _, _ = torch.ops.ds.add_layer_norm_forward(x, residual, weight, bias, eps)
    return y, total


def _wanted(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _check_forward(plain: OpDefinition) -> Callable[..., None]:
    def check(x: torch.Tensor, residual: torch.Tensor, *parameters: Any, **named: Any) -> None:
        plain.check(x, *parameters, **named)
        expect_like(f"add_{plain.name.removesuffix('_forward')}", "residual", residual, "x", x)

    return check


def _check_backward(plain: OpDefinition) -> Callable[..., None]:
    def check(dy: torch.Tensor, dtotal: torch.Tensor | None, total: torch.Tensor, *rest: Any, **named: Any) -> None:
        plain.check(dy, total, *rest, **named)
        if dtotal is not None:
            expect_like(f"add_{plain.name}", "dtotal", dtotal, "total", total)

    return check


def _reference_forward(plain: OpDefinition) -> Callable[..., Any]:
    def reference(x: torch.Tensor, residual: torch.Tensor, *parameters: Any, **named: Any) -> Any:
        total = (x.float().contiguous() + residual.float()).to(x.dtype)
        y, *statistics = plain.reference(total, *parameters, **named)
        return y, total, *statistics

    return reference


def _reference_backward(plain: OpDefinition) -> Callable[..., Any]:
    def reference(dy: torch.Tensor, dtotal: torch.Tensor | None, total: torch.Tensor, *rest: Any, **named: Any) -> Any:
        # In float32 up to the sum, which is rounded once.
        dx, *parameters = plain.reference(dy.float(), total.float().contiguous(), *rest, **named)
        dx = dx if dtotal is None else dx + dtotal.float()
        return dx.to(total.dtype), *parameters

    return reference


def _fake_forward(plain: OpDefinition) -> Callable[..., Any]:
    def fake(x: torch.Tensor, residual: torch.Tensor, *parameters: Any, **named: Any) -> Any:
        y, *statistics = plain.fake(x, *parameters, **named)
        return y, torch.empty_like(y), *statistics

    return fake


def _fake_backward(plain: OpDefinition) -> Callable[..., Any]:
    def fake(dy: torch.Tensor, dtotal: torch.Tensor | None, total: torch.Tensor, *rest: Any, **named: Any) -> Any:
        return plain.fake(dy, total, *rest, **named)

    return fake


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    _, total, *statistics = output
    ctx.has_bias = len(statistics) == 2 and inputs[3] is not None
    ctx.save_for_backward(total, inputs[2], *statistics)
    ctx.mark_non_differentiable(*statistics)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dy: torch.Tensor | None, dtotal: torch.Tensor | None, *statistics: Any) -> tuple[Any, ...]:
    """Gradients of x, residual, weight, (bias,) eps."""
    total, weight, *kept = ctx.saved_tensors
    biased = len(kept) == 2
    if dy is None:
        return dtotal, dtotal, *((None,) * (3 if biased else 2))
    name = "add_layer_norm_backward" if biased else "add_rms_norm_backward"
    dx, dweight, *dbias = getattr(torch.ops.ds, name)(dy, dtotal, total, weight, *kept)
    if not biased:
        return dx, dx, dweight, None
    return dx, dx, dweight, dbias[0] if ctx.has_bias else None, None


def _forward_cases(plain: OpDefinition) -> tuple[OpCase, ...]:
    """Those of the plain op with a residual. A sum that rounds the other way is not possible: it is one addition."""
    return tuple(
        replace(case, tensors={"x": case.tensors["x"], "residual": case.tensors["x"], **_but(case, "x")})
        for case in plain.cases
    )


def _backward_cases(plain: OpDefinition) -> tuple[OpCase, ...]:
    made = []
    for case in plain.cases:
        dy = case.tensors["dy"]
        total = case.tensors["x"]
        assert dy is not None and total is not None
        for name, dtotal in ((case.name, dy), (f"{case.name}_without_dtotal", None)):
            tensors = {"dy": dy, "dtotal": dtotal, "total": total, **_but(case, "dy", "x")}
            made.append(replace(case, name=name, tensors=tensors, exactness=Exactness(ulps=2, relative=2e-5)))
    return tuple(made)


def _but(case: OpCase, *names: str) -> dict[str, TensorSpec | None]:
    return {name: spec for name, spec in case.tensors.items() if name not in names}


def _forward(plain: OpDefinition, schema: str) -> OpDefinition:
    return OpDefinition(
        schema=schema,
        check=_check_forward(plain),
        reference=_reference_forward(plain),
        fake=_fake_forward(plain),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_forward_cases(plain),
    )


def _backward(plain: OpDefinition, schema: str) -> OpDefinition:
    return OpDefinition(
        schema=schema,
        check=_check_backward(plain),
        reference=_reference_backward(plain),
        fake=_fake_backward(plain),
        autograd=None,
        cases=_backward_cases(plain),
    )


DEFINITIONS = (
    _forward(
        _RMS_FORWARD,
        "add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    ),
    _backward(
        _RMS_BACKWARD,
        "add_rms_norm_backward(Tensor dy, Tensor? dtotal, Tensor total, Tensor weight, Tensor rstd) "
        "-> (Tensor, Tensor)",
    ),
    _forward(
        _LAYER_FORWARD,
        "add_layer_norm_forward(Tensor x, Tensor residual, Tensor weight, Tensor? bias, float eps) "
        "-> (Tensor, Tensor, Tensor, Tensor)",
    ),
    _backward(
        _LAYER_BACKWARD,
        "add_layer_norm_backward(Tensor dy, Tensor? dtotal, Tensor total, Tensor weight, Tensor mean, Tensor rstd) "
        "-> (Tensor, Tensor, Tensor)",
    ),
)
