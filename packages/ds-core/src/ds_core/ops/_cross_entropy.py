"""cross_entropy: of rows of logits, in one pass over them; its gradient apart, or written over the logits."""

from __future__ import annotations

from typing import Any

import torch

from ds_core.errors import OpError
from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec
from ds_core.ops.checks import expect_dtype, expect_index, expect_rows_exist, expect_shape, name_of
from ds_core.ops.definition import Autograd, OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "check_reduction", "counted", "cross_entropy", "cross_entropy_"]

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    reduction: str = "mean",
    overwrite: bool = False,
) -> torch.Tensor:
    """The cross-entropy of ``softmax(logits)`` against class numbers, in float32; differentiable in `logits`.

    ``lse - (1 - s) * logits[target] - s * mean(logits) + z_loss * lse ** 2`` for each row, with ``lse`` the logarithm
    of the sum of exponentials and ``s`` the smoothing. Nothing of the size of the logits is kept besides themselves.

    Args:
        logits: [..., classes], float32, bfloat16 or float16, any strides.
        target: [...] int64, 0 to classes - 1, or `ignore_index`: such a row counts for nothing.
        z_loss: factor of the squared ``lse``.
        reduction: ``"mean"`` over the rows that count (NaN when none does, as torch's), ``"sum"`` or ``"none"``.
        overwrite: the gradient takes the memory of `logits`, whose values are lost at once. For dense logits that
            nothing else reads, such as the output of a linear layer; ``"mean"`` or ``"sum"``.

    Raises:
        OpError: a shape, dtype, option or class number does not fit.

    Source: label smoothing: C. Szegedy et al., "Rethinking the Inception Architecture", 2015, section 7; z-loss:
    A. Chowdhery et al., "PaLM", 2022, section 5.
    """
    check_reduction("cross_entropy", reduction, ("mean", "sum") if overwrite else REDUCTIONS)
    options = (ignore_index, label_smoothing, z_loss)
    wants_gradient = torch.is_grad_enabled() and logits.requires_grad
    loss: torch.Tensor
    if overwrite and wants_gradient:
        loss = _Overwriting.apply(logits, target, reduction, options)  # type: ignore[no-untyped-call]
        return loss
    if is_plain(logits) and not wants_gradient:
        losses, _ = run(DEFINITIONS[0], logits, target, *options)
    else:
        losses, _ = torch.ops.ds.cross_entropy_forward(logits, target, *options)
    if reduction == "none":
        loss = losses
    else:
        loss = losses.sum() if reduction == "sum" else losses.sum() / counted(target, ignore_index)
    return loss


def cross_entropy_(
    logits: torch.Tensor,
    target: torch.Tensor,
    factor: float = 1.0,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The losses of the rows, float32; dense `logits` are replaced by the gradient of ``factor * losses.sum()``."""
    call = torch.ops.ds.cross_entropy_ if not is_plain(logits) else _in_place
    losses: torch.Tensor = call(logits, target, factor, ignore_index, label_smoothing, z_loss)
    return losses


def check_reduction(op: str, reduction: str, allowed: tuple[str, ...]) -> None:
    """The name of a reduction is one of those allowed."""
    if reduction not in allowed:
        raise OpError(f"{op}: reduction must be {', '.join(allowed)}, got {reduction!r}.")


def counted(target: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """How many rows count, as a 0-dim float32 tensor."""
    return (target != ignore_index).sum().float()


class _Overwriting(torch.autograd.Function):
    """Losses whose gradient already lies where the logits were."""

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, target: torch.Tensor, reduction: str, options: tuple[int, float, float]
    ) -> torch.Tensor:
        count = counted(target, options[0]) if reduction == "mean" else None
        factor = 1.0 if count is None else 1.0 / max(count.item(), 1.0)
        memory = logits.detach()
        losses = cross_entropy_(memory, target, factor, *options)
        ctx.save_for_backward(memory)
        return losses.sum() if count is None else losses.sum() / count

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        (dlogits,) = ctx.saved_tensors
        if gradients[0].item() != 1.0:
            dlogits = dlogits.mul_(gradients[0])
        return dlogits, None, None, None


def _in_place(*arguments: Any) -> torch.Tensor:
    with torch.no_grad():
        losses: torch.Tensor = run(DEFINITIONS[2], *arguments)
    return losses


def _check(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, label_smoothing: float, z_loss: float
) -> None:
    op = "cross_entropy"
    expect_dtype(op, "logits", logits)
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise OpError(f"{op}: logits must be [..., classes] with one class or more, got shape {tuple(logits.shape)}.")
    expect_index(op, "target", target, "logits", logits.device)
    expect_shape(op, "target", target, logits.shape[:-1], "the rows of logits")
    if not 0.0 <= label_smoothing <= 1.0:
        raise OpError(f"{op}: label_smoothing must be 0 to 1, got {label_smoothing}.")


def _check_backward(
    dlosses: torch.Tensor, logits: torch.Tensor, target: torch.Tensor, lse: torch.Tensor, *options: Any, **named: Any
) -> None:
    _check(logits, target, *options, **named)
    for name, tensor in (("dlosses", dlosses), ("lse", lse)):
        expect_dtype("cross_entropy_backward", name, tensor, (torch.float32,))
        expect_shape("cross_entropy_backward", name, tensor, target.shape, "the rows of logits")


def _check_in_place(logits: torch.Tensor, target: torch.Tensor, factor: float, *options: Any, **named: Any) -> None:
    _check(logits, target, *options, **named)
    if not logits.is_contiguous():
        raise OpError(
            f"cross_entropy_: logits must be dense to be written over, got strides {logits.stride()} for shape "
            f"{tuple(logits.shape)} of {name_of(logits.dtype)}. Pass logits.contiguous()."
        )


def _reference(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, label_smoothing: float, z_loss: float
) -> tuple[torch.Tensor, torch.Tensor]:
    expect_rows_exist("cross_entropy", "target", target, logits.shape[-1], ignore_index, " (ignore_index)")
    values = logits.float().contiguous()
    ignored = target == ignore_index
    picked = values.gather(-1, torch.where(ignored, 0, target).unsqueeze(-1)).squeeze(-1)
    lse = values.logsumexp(-1)
    losses = lse - (1.0 - label_smoothing) * picked
    if label_smoothing != 0.0:
        losses = losses - label_smoothing * values.mean(-1)
    if z_loss != 0.0:
        losses = losses + z_loss * lse.square()
    return losses.masked_fill(ignored, 0.0), lse.masked_fill(ignored, 0.0)


def _reference_backward(
    dlosses: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    lse: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> torch.Tensor:
    expect_rows_exist("cross_entropy", "target", target, logits.shape[-1], ignore_index, " (ignore_index)")
    ignored = (target == ignore_index).unsqueeze(-1)
    d, log_sum = dlosses.unsqueeze(-1), lse.unsqueeze(-1)
    gradient = (logits.float().contiguous() - log_sum).exp() * (d * (1.0 + 2.0 * z_loss * log_sum))
    gradient -= d * (label_smoothing / logits.shape[-1])
    index = torch.where(ignored, 0, target.unsqueeze(-1))
    gradient.scatter_add_(-1, index, -d * (1.0 - label_smoothing))
    return gradient.masked_fill(ignored, 0.0).to(logits.dtype)


def _reference_in_place(
    logits: torch.Tensor,
    target: torch.Tensor,
    factor: float,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
) -> torch.Tensor:
    options = (ignore_index, label_smoothing, z_loss)
    losses, lse = _reference(logits, target, *options)
    logits.copy_(_reference_backward(torch.full_like(lse, factor), logits, target, lse, *options))
    return losses


def _row_values(logits: torch.Tensor) -> torch.Tensor:
    return logits.new_empty(logits.shape[:-1], dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, target, *ctx.options = inputs
    ctx.save_for_backward(logits, target, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dlosses: torch.Tensor | None, _: torch.Tensor | None) -> tuple[Any, ...]:
    if dlosses is None:
        return None, None, None, None, None
    dlogits = torch.ops.ds.cross_entropy_backward(dlosses.contiguous(), *ctx.saved_tensors, *ctx.options)
    return dlogits, None, None, None, None


def _case(name: str, shape: tuple[int, ...], dtype: str, given: tuple[str, ...], **more: Any) -> OpCase:
    rows = shape[:-1]
    fill, spread = more.pop("fill", Fill.NORMAL), more.pop("spread", 2.0)
    tensors = {
        "dlosses": TensorSpec(rows, "float32"),
        "logits": TensorSpec(shape, dtype, fill, spread, more.pop("layout", Layout.CONTIGUOUS)),
        "target": TensorSpec(rows, "int64", more.pop("targets", Fill.TARGETS), shape[-1]),
        "lse": TensorSpec(rows, "float32", Fill.SQUARES, 3.0),
    }
    scalars = {"ignore_index": -100, "label_smoothing": 0.0, "z_loss": 0.0, **more}
    if "factor" in given:
        scalars = {"factor": 0.37, **scalars}
    exactness = Exactness(ulps=8, relative=3e-6 if "lse" not in given else 1e-5)
    return OpCase(name, {key: tensors[key] for key in given if key in tensors}, scalars, exactness)


def _cases(*given: str, strided: bool = True) -> tuple[OpCase, ...]:
    made = [
        *(_case(dtype, (7, 500), dtype, given) for dtype in ("float32", "bfloat16", "float16")),
        _case("many_classes", (3, 50_257), "bfloat16", given),
        _case("many_rows", (2500, 33), "float32", given),
        _case("one_class", (5, 1), "float32", given, targets=Fill.INDICES),
        _case("no_rows", (0, 9), "float32", given),
        _case("one_dimension", (100,), "float32", given, targets=Fill.INDICES),
        _case("three_dimensions", (2, 3, 65), "float32", given),
        _case("none_ignored", (9, 65), "float32", given, targets=Fill.INDICES),
        _case("another_ignored", (9, 6), "float32", given, targets=Fill.INDICES, ignore_index=3),
        _case("smoothed", (9, 1500), "float32", given, label_smoothing=0.1),
        _case("smoothed_bfloat16", (9, 1500), "bfloat16", given, label_smoothing=0.1, z_loss=1e-3),
        _case("z_loss", (9, 1500), "float32", given, z_loss=1e-2),
        _case("unaligned", (9, 67), "bfloat16", given, layout=Layout.OFFSET),
    ]
    if "lse" not in given:
        made += [
            _case("large_values", (9, 65), "float32", given, spread=1e4),
            _case("special", (90, 300), "float32", given, fill=Fill.SPECIAL),
        ]
    if strided:
        made += [
            _case("transposed", (20, 30), "float32", given, layout=Layout.TRANSPOSED),
            _case("strided", (9, 48), "bfloat16", given, layout=Layout.STRIDED),
        ]
    return tuple(made)


_OPTIONS = "int ignore_index, float label_smoothing, float z_loss"
DEFINITIONS = (
    OpDefinition(
        schema=f"cross_entropy_forward(Tensor logits, Tensor target, {_OPTIONS}) -> (Tensor, Tensor)",
        check=_check,
        reference=_reference,
        fake=lambda logits, target, ignore_index, label_smoothing, z_loss: (_row_values(logits), _row_values(logits)),
        autograd=Autograd(_differentiate, _setup_context),
        cases=_cases("logits", "target"),
    ),
    OpDefinition(
        schema=(
            f"cross_entropy_backward(Tensor dlosses, Tensor logits, Tensor target, Tensor lse, {_OPTIONS}) -> Tensor"
        ),
        check=_check_backward,
        reference=_reference_backward,
        fake=lambda dlosses, logits, target, lse, ignore_index, label_smoothing, z_loss: torch.empty_like(
            logits, memory_format=torch.contiguous_format
        ),
        autograd=None,
        cases=_cases("dlosses", "logits", "target", "lse"),
    ),
    OpDefinition(
        schema=f"cross_entropy_(Tensor(a!) logits, Tensor target, float factor, {_OPTIONS}) -> Tensor",
        check=_check_in_place,
        reference=_reference_in_place,
        fake=lambda logits, target, factor, ignore_index, label_smoothing, z_loss: _row_values(logits),
        autograd=None,
        cases=_cases("logits", "target", "factor", strided=False),
    ),
)
