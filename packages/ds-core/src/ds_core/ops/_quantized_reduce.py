"""quantized_reduce: what peers sent as codes and scales, added up in float32, as floats or quantized again."""

from __future__ import annotations

import torch

from ds_core.errors import OpError
from ds_core.ops._formats import decode, e8m0_to_float, format_of, packed_shape, unpack_codes
from ds_core.ops._quantize import DEFINITIONS as QUANTIZE_DEFINITIONS
from ds_core.ops._quantize import Quantized, check_group_size, check_scaling, groups_of, in_groups
from ds_core.ops._quantized_reduce_cases import REDUCE_CASES, REQUANTIZE_CASES
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_shape, name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run

__all__ = ["DEFINITIONS", "quantized_reduce", "quantized_reduce_quantize"]


def quantized_reduce(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    *,
    average: bool = False,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The sum (or mean) of chunks that were sent as codes: the receiving end of a reduce-scatter of few bits.

    ``y[i] = (0 + x[0][i] + x[1][i] + ...) [/ ranks]`` with ``x[r] = (q[r] - zero) * scale`` of its group, in float32,
    in the order of ranks, rounded once to `dtype`; so every rank that has the same chunks gets the same bits.

    Args:
        q: [ranks, elements of a packed chunk], each row as `quantize` packs a flat chunk of `numel` elements: int8 for
            the format int8, else uint8.
        scales: [ranks, ceil(numel / group_size)] float32, for float formats also uint8 (E8M0).
        zeros: int8 like `scales`, or None.
        format, group_size: of the chunks, as for `quantize`.
        numel: elements of a chunk.
        average: divide the sum by the number of ranks.
        dtype: of the result: float32, bfloat16 or float16.

    Returns:
        [numel].

    Raises:
        OpError: an argument does not fit.

    Source: G. Wang et al., "ZeRO++: extremely efficient collective communication for giant model training", 2023,
    section on quantized gradients (qgZ).
    """
    call = torch.ops.ds.quantized_reduce if not is_plain(q) else _reduce
    y: torch.Tensor = call(q, scales, zeros, format, group_size, numel, average, dtype)
    return y


def quantized_reduce_quantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    *,
    average: bool = False,
    out_format: str | None = None,
    out_group_size: int | None = None,
    out_scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> Quantized:
    """`quantized_reduce`, and its float32 result quantized in the same pass: between two hops of a hierarchy.

    Args:
        out_format, out_group_size: of the result; None for those of the chunks. The size is a multiple of what either
            format packs together.
        out_scaling, rounding_seed, rounding_offset: as for `quantize`.

    Returns:
        What `quantize` makes of the sum, flat.

    Raises:
        OpError: an argument does not fit.
    """
    call = torch.ops.ds.quantized_reduce_quantize if not is_plain(q) else _reduce_quantize
    found = call(
        q, scales, zeros, format, group_size, numel, average,
        format if out_format is None else out_format, group_size if out_group_size is None else out_group_size,
        out_scaling, rounding_seed, rounding_offset,
    )  # fmt: skip
    return Quantized(found[0], found[1], found[2] if out_scaling == "asymmetric" else None)


def _reduce(*args: object) -> torch.Tensor:
    y: torch.Tensor = run(DEFINITIONS[0], *args)
    return y


def _reduce_quantize(*args: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, scales, zeros = run(DEFINITIONS[1], *args)
    return q, scales, zeros


def _check_chunks(
    op: str,
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
) -> None:
    found = format_of(op, format)
    check_group_size(op, found, group_size)
    if numel < 0:
        raise OpError(f"{op}: numel must be 0 or more, got {numel}.")
    expect_dtype(op, "q", q, (found.dtype,))
    if q.dim() != 2 or q.shape[0] < 1:
        raise OpError(f"{op}: q must be [ranks, packed chunk] with 1 rank or more, got shape {tuple(q.shape)}.")
    ranks = q.shape[0]
    expect_shape(op, "q", q, (ranks, *packed_shape(found, (numel,))), f"chunks of {numel} elements as {format} codes")
    groups = (ranks, groups_of(numel, group_size))
    expect_dtype(op, "scales", scales, (torch.float32,) if found.is_integer else (torch.float32, torch.uint8))
    expect_shape(op, "scales", scales, groups, f"one scale for every {group_size} elements of each chunk")
    expect_device(op, "scales", scales, "q", q.device)
    if zeros is not None:
        if not found.is_integer:
            raise OpError(f"{op}: zeros must be None for {format}; only integers have zero points.")
        expect_dtype(op, "zeros", zeros, (torch.int8,))
        expect_shape(op, "zeros", zeros, groups, f"one zero point for every {group_size} elements of each chunk")
        expect_device(op, "zeros", zeros, "q", q.device)


def _check_reduce(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    average: bool,
    dtype: torch.dtype,
) -> None:
    _check_chunks("quantized_reduce", q, scales, zeros, format, group_size, numel)
    if dtype not in FLOATS:
        allowed = ", ".join(name_of(each) for each in FLOATS)
        raise OpError(f"quantized_reduce: dtype must be {allowed}, got {name_of(dtype)}.")


def _check_reduce_quantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    average: bool,
    out_format: str,
    out_group_size: int,
    out_scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    op = "quantized_reduce_quantize"
    _check_chunks(op, q, scales, zeros, format, group_size, numel)
    found = format_of(op, out_format)
    for each in (found, format_of(op, format)):  # groups begin with a unit of either packing
        check_group_size(op, each, out_group_size, "out_group_size")
    check_scaling(op, found, out_scaling, rounding_offset)


def _reference_reduce(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    average: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    found = format_of("quantized_reduce", format)
    factors = e8m0_to_float(scales) if scales.dtype == torch.uint8 else scales
    total = torch.zeros((groups_of(numel, group_size), group_size), dtype=torch.float32, device=q.device)
    for rank in range(q.shape[0]):
        values = in_groups(decode(unpack_codes(q[rank].contiguous(), found, numel), found), group_size)
        if zeros is not None:
            values = values - zeros[rank].unsqueeze(1)
        total = total + values * factors[rank].unsqueeze(1)
    if average:
        total = total / q.shape[0]
    return total.view(-1)[:numel].to(dtype, copy=True)


def _reference_reduce_quantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    average: bool,
    out_format: str,
    out_group_size: int,
    out_scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = _reference_reduce(q, scales, zeros, format, group_size, numel, average, torch.float32)
    quantize = QUANTIZE_DEFINITIONS[0].reference
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = quantize(
        total, out_format, out_group_size, out_scaling, rounding_seed, rounding_offset
    )
    return found


def _fake_reduce_quantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    numel: int,
    average: bool,
    out_format: str,
    out_group_size: int,
    out_scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = format_of("quantized_reduce_quantize", out_format)
    groups = groups_of(numel, out_group_size)
    return (
        q.new_empty(packed_shape(found, (numel,)), dtype=found.dtype),
        q.new_empty((groups,), dtype=torch.uint8 if out_scaling == "power_of_two" else torch.float32),
        q.new_empty((groups if out_scaling == "asymmetric" else 0,), dtype=torch.int8),
    )


_CHUNKS = "Tensor q, Tensor scales, Tensor? zeros, str format, int group_size, SymInt numel, bool average"

DEFINITIONS = (
    OpDefinition(
        schema=f"quantized_reduce({_CHUNKS}, ScalarType dtype) -> Tensor",
        check=_check_reduce,
        reference=_reference_reduce,
        fake=lambda q, scales, zeros, format, group_size, numel, average, dtype: q.new_empty((numel,), dtype=dtype),
        autograd=None,
        cases=REDUCE_CASES,
    ),
    OpDefinition(
        schema=(
            f"quantized_reduce_quantize({_CHUNKS}, str out_format, int out_group_size, "
            'str out_scaling="symmetric", int rounding_seed=-1, int rounding_offset=0) -> (Tensor, Tensor, Tensor)'
        ),
        check=_check_reduce_quantize,
        reference=_reference_reduce_quantize,
        fake=_fake_reduce_quantize,
        autograd=None,
        cases=REQUANTIZE_CASES,
    ),
)
