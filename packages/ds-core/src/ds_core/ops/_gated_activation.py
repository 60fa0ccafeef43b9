"""gated_activation: an activation of one tensor times another, or of the halves of one; forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ds_core.errors import OpError, did_you_mean
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_like
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "KINDS", "gated_activation", "gated_activation_packed"]

KINDS: Mapping[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3}
"""Name of an activation to its number in ds_kernel.h. With silu this is SwiGLU, with gelu GEGLU, with relu ReGLU."""


def gated_activation(gate: torch.Tensor, up: torch.Tensor, kind: str = "silu") -> torch.Tensor:
    """``activation(gate) * up``, in float32 with one rounding; differentiable in both.

    The backward pass computes the activation again from `gate`, so nothing but the two arguments is kept.

    Args:
        gate, up: one shape and dtype (float32, bfloat16 or float16), any strides.
        kind: ``"silu"``, ``"gelu"`` (with the error function), ``"gelu_tanh"`` or ``"relu"``.

    Raises:
        OpError: a shape, dtype or device does not fit, or the kind is unknown.

    Source: N. Shazeer, "GLU Variants Improve Transformer", 2020, eq. 5 and 6.
    """
    y: torch.Tensor
    if is_plain(gate) and not (torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad)):
        y = run(DEFINITIONS[0], gate, up, kind)
    else:
        y = torch.ops.ds.gated_activation(gate, up, kind)
    return y


def gated_activation_packed(x: torch.Tensor, kind: str = "silu") -> torch.Tensor:
    """``activation(x[..., :h]) * x[..., h:]`` of x [..., 2 h], copying neither half; see `gated_activation`."""
    y: torch.Tensor
    if is_plain(x) and not (torch.is_grad_enabled() and x.requires_grad):
        y = run(DEFINITIONS[2], x, kind)
    else:
        y = torch.ops.ds.gated_activation_packed(x, kind)
    return y


def _check_kind(op: str, kind: str) -> None:
    if kind not in KINDS:
        raise OpError(f"{op}: kind must be {', '.join(KINDS)}, got {kind!r}.{did_you_mean(kind, KINDS)}")


def _check(gate: torch.Tensor, up: torch.Tensor, kind: str) -> None:
    _check_kind("gated_activation", kind)
    expect_dtype("gated_activation", "gate", gate)
    expect_like("gated_activation", "up", up, "gate", gate)


def _check_backward(dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str) -> None:
    _check(gate, up, kind)
    expect_like("gated_activation_backward", "dy", dy, "gate", gate)


def _check_packed(x: torch.Tensor, kind: str) -> None:
    _check_kind("gated_activation_packed", kind)
    expect_dtype("gated_activation_packed", "x", x)
    if x.dim() < 1 or x.shape[-1] % 2:
        raise OpError(f"gated_activation_packed: the last dimension of x must be even, got shape {tuple(x.shape)}.")


def _check_packed_backward(dy: torch.Tensor, x: torch.Tensor, kind: str) -> None:
    _check_packed(x, kind)
    expect_like("gated_activation_packed_backward", "dy", dy, "half of x", _halves(x)[0])


def _halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _silu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    s = 1.0 / (1.0 + (-x).exp())
    return x / (1.0 + (-x).exp()), s * (1.0 + x * (1.0 - s))


def _gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    phi = 0.5 * (1.0 + (x * math.sqrt(0.5)).erf())
    return x * phi, phi + x * ((-0.5 * x * x).exp() * (1.0 / math.sqrt(2.0 * math.pi)))


def _gelu_tanh(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    root = math.sqrt(2.0 / math.pi)
    t = (root * (x + 0.044715 * (x * x * x))).tanh()
    left = 0.5 * (1.0 + t)
    inner = root * (1.0 + 3.0 * 0.044715 * (x * x))
    return 0.5 * x * (1.0 + t), left + 0.5 * x * ((1.0 - t * t) * inner)


def _relu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return x.relu(), (x > 0).float()


_POINTS: Mapping[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "silu": _silu,
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "relu": _relu,
}
"""Value and derivative in float32."""


def _reference(gate: torch.Tensor, up: torch.Tensor, kind: str) -> torch.Tensor:
    value, _ = _POINTS[kind](gate.float().contiguous())
    return (value * up.float()).to(gate.dtype)


def _reference_backward(
    dy: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, kind: str
) -> tuple[torch.Tensor, torch.Tensor]:
    value, slope = _POINTS[kind](gate.float().contiguous())
    gradient = dy.float().contiguous()
    return (gradient * up.float() * slope).to(gate.dtype), (gradient * value).to(gate.dtype)


def _reference_packed(x: torch.Tensor, kind: str) -> torch.Tensor:
    return _reference(*_halves(x), kind)


def _reference_packed_backward(dy: torch.Tensor, x: torch.Tensor, kind: str) -> torch.Tensor:
    return torch.cat(_reference_backward(dy, *_halves(x), kind), -1)


def _dense(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    *tensors, ctx.kind = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    return *torch.ops.ds.gated_activation_backward(dy, *ctx.saved_tensors, ctx.kind), None


def _differentiate_packed(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
    return torch.ops.ds.gated_activation_packed_backward(dy, *ctx.saved_tensors, ctx.kind), None


_EXACTNESS = Exactness(ulps=4, relative=1e-6)
"""exp, tanh and erf are within two units of the exact value in kernels, and about as near in torch."""
_SHAPES: tuple[tuple[str, tuple[int, ...], str, Fill, float, Layout], ...] = (
    *((dtype, (7, 130), dtype, Fill.NORMAL, 2.0, Layout.CONTIGUOUS) for dtype in ("float32", "bfloat16", "float16")),
    ("empty", (0, 6), "float32", Fill.NORMAL, 1.0, Layout.CONTIGUOUS),
    ("one_dimension", (2502,), "float32", Fill.NORMAL, 4.0, Layout.CONTIGUOUS),
    ("four_dimensions", (2, 3, 5, 6), "bfloat16", Fill.NORMAL, 1.0, Layout.CONTIGUOUS),
    ("many", (40, 2060), "float32", Fill.NORMAL, 3.0, Layout.CONTIGUOUS),
    ("large_values", (5, 514), "float32", Fill.NORMAL, 60.0, Layout.CONTIGUOUS),
    ("special", (9, 1002), "float32", Fill.SPECIAL, 1.0, Layout.CONTIGUOUS),
    ("transposed", (20, 30), "float32", Fill.NORMAL, 1.0, Layout.TRANSPOSED),
    ("strided", (9, 48), "bfloat16", Fill.NORMAL, 1.0, Layout.STRIDED),
    ("unaligned", (9, 66), "float16", Fill.NORMAL, 1.0, Layout.OFFSET),
)


def _cases(*names: str, halved: str | None = None) -> tuple[OpCase, ...]:
    """The same shapes for each argument; `halved` has half the columns."""
    return tuple(
        OpCase(
            f"{kind}_{name}",
            {
                argument: TensorSpec(
                    (*shape[:-1], shape[-1] // 2) if argument == halved else shape, dtype, fill, scale, layout
                )
                for argument in names
            },
            {"kind": kind},
            exactness=_EXACTNESS,
        )
        for kind in KINDS
        for name, shape, dtype, fill, scale, layout in _SHAPES
    )


DEFINITIONS = (
    OpDefinition(
        schema="gated_activation(Tensor gate, Tensor up, str kind) -> Tensor",
        check=_check,
        reference=_reference,
        fake=lambda gate, up, kind: _dense(gate),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_cases("gate", "up"),
    ),
    OpDefinition(
        schema="gated_activation_backward(Tensor dy, Tensor gate, Tensor up, str kind) -> (Tensor, Tensor)",
        check=_check_backward,
        reference=_reference_backward,
        fake=lambda dy, gate, up, kind: (_dense(gate), _dense(up)),
        autograd=None,
        cases=_cases("dy", "gate", "up"),
    ),
    OpDefinition(
        schema="gated_activation_packed(Tensor x, str kind) -> Tensor",
        check=_check_packed,
        reference=_reference_packed,
        fake=lambda x, kind: x.new_empty((*x.shape[:-1], x.shape[-1] // 2)),
        autograd=Autograd(_differentiate_packed, _setup_context),
        cases=_cases("x"),
    ),
    OpDefinition(
        schema="gated_activation_packed_backward(Tensor dy, Tensor x, str kind) -> Tensor",
        check=_check_packed_backward,
        reference=_reference_packed_backward,
        fake=lambda dy, x, kind: _dense(x),
        autograd=None,
        cases=_cases("dy", "x", halved="dy"),
    ),
)
