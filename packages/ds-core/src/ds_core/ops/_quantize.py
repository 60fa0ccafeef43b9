"""quantize and dequantize: groups of consecutive elements as integers or small floats with a scale for each group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ds_core.errors import OpError
from ds_core.ops._formats import (
    Format,
    decode,
    e8m0_to_float,
    format_of,
    magnitudes,
    pack_codes,
    packed_shape,
    unpack_codes,
)
from ds_core.ops._quantize_cases import DEQUANTIZE_CASES, QUANTIZE_CASES
from ds_core.ops.checks import FLOATS, expect_device, expect_dtype, expect_shape, name_of
from ds_core.ops.definition import OpDefinition
from ds_core.ops.dispatch import is_plain, run
from ds_core.ops.rounding import random_bits

__all__ = [
    "DEFINITIONS",
    "SCALINGS",
    "Quantized",
    "check_group_size",
    "check_scaling",
    "dequantize",
    "dequantize_int4",
    "dequantize_int8",
    "groups_of",
    "in_groups",
    "quantize",
    "quantize_int4",
    "quantize_int8",
]

SCALINGS = {"symmetric": 1, "asymmetric": 2, "power_of_two": 3}
"""Name of a way to scale to its number in ``enum ds_scaling`` of ds_kernel/quantize.h."""


class Quantized(NamedTuple):
    """What `quantize` returns.

    Args:
        q: codes, see `quantize`.
        scales: [groups]; float32, or uint8 (E8M0) for ``power_of_two``.
        zeros: [groups] int8 for ``asymmetric``, else None.
    """

    q: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


def quantize(
    x: torch.Tensor,
    format: str,
    group_size: int,
    *,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> Quantized:
    """`x` as codes of `format` with one scale for every `group_size` elements in memory order of a dense `x`.

    ``symmetric``: ``scale = amax / largest``, where `largest` is 127 (int8), 7 (int4), 448 (e4m3fn), 57344 (e5m2), 28
    (e3m2), 7.5 (e2m3) or 6 (e2m1), and ``q = round(x / scale)``. ``asymmetric`` (integers): ``scale = max(hi, 0) / n -
    min(lo, 0) / n`` with ``n = 2 ** bits - 1``, ``zero = round(lowest - min(lo, 0) / scale)`` and ``q = round(x /
    scale) + zero``, so 0 is exact. ``power_of_two`` (floats): ``scale = 2 ** (floor(log2(amax)) - greatest
    exponent of the format)``, stored as E8M0; with `group_size` 32 these are the MX formats. Results are kept within
    the format's finite range. A group of zeros has scale 1; a group with an infinity or NaN has a scale that is not
    finite, and dequantizes to NaN. The last group may be shorter.

    Args:
        x: float32, bfloat16 or float16, any shape and strides.
        format: ``int8``, ``int4``, ``e4m3fn``, ``e5m2``, ``e3m2``, ``e2m3`` or ``e2m1``.
        group_size: elements that share a scale, 1 or more; even for formats of 4 bits, a multiple of 4 for 6 bits.
        scaling: see above.
        rounding_seed: 0 or more rounds up with a probability equal to the discarded fraction, from the sequence of
            `ds_core.ops.rounding` (stream 0); negative rounds to nearest, ties to even.
        rounding_offset: position in that sequence of the first element.

    Returns:
        `Quantized`: q is int8 (format int8) or uint8 (8-bit floats; ``q.view(torch.float8_e4m3fn)`` reads them), dense
        and shaped like `x`; smaller formats are packed into one dimension of uint8, see Note [Packing] in
        ds_core/ops/_formats.py. int4 codes are stored plus 8.

    Raises:
        OpError: an argument does not fit.

    Source: OCP Microscaling formats (MX) specification 1.0, section 6.3, for ``power_of_two``.
    """
    call = torch.ops.ds.quantize if not is_plain(x) else _quantize
    q, scales, zeros = call(x, format, group_size, scaling, rounding_seed, rounding_offset)
    return Quantized(q, scales, zeros if scaling == "asymmetric" else None)


def dequantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """``(q - zero) * scale`` of each group, rounded once to `dtype` (float32, bfloat16 or float16), dense in `shape`.

    The inverse of `quantize`; scales of uint8 are read as E8M0.

    Raises:
        OpError: a shape, dtype, format or `group_size` does not fit.
    """
    call = torch.ops.ds.dequantize if not is_plain(q) else _dequantize
    x: torch.Tensor = call(q, scales, zeros, format, group_size, list(shape), dtype)
    return x


def quantize_int8(x: torch.Tensor, group_size: int, rounding_seed: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """(q, scales): `quantize` to symmetric int8, q shaped like `x`."""
    return quantize(x, "int8", group_size, rounding_seed=rounding_seed)[:2]


def dequantize_int8(
    q: torch.Tensor, scales: torch.Tensor, group_size: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The inverse of `quantize_int8`, shaped like `q`."""
    return dequantize(q, scales, None, "int8", group_size, q.shape, dtype)


def quantize_int4(x: torch.Tensor, group_size: int, rounding_seed: int = -1) -> tuple[torch.Tensor, torch.Tensor]:
    """(packed, scales): `quantize` to symmetric int4, two codes a byte: ``[ceil(numel / 2)]`` uint8."""
    return quantize(x, "int4", group_size, rounding_seed=rounding_seed)[:2]


def dequantize_int4(
    packed: torch.Tensor,
    scales: torch.Tensor,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """The inverse of `quantize_int4`, in `shape`."""
    return dequantize(packed, scales, None, "int4", group_size, shape, dtype)


def _quantize(
    x: torch.Tensor, format: str, group_size: int, scaling: str, rounding_seed: int, rounding_offset: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q, scales, zeros = run(DEFINITIONS[0], x, format, group_size, scaling, rounding_seed, rounding_offset)
    return q, scales, zeros


def _dequantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    x: torch.Tensor = run(DEFINITIONS[1], q, scales, zeros, format, group_size, shape, dtype)
    return x


def check_group_size(op: str, format: Format, group_size: int, name: str = "group_size") -> None:
    """Groups of that size are whole units of packed codes."""
    unit = format.codes_per_unit
    if group_size < 1 or group_size % unit != 0:
        rule = "1 or more" if unit == 1 else f"a multiple of {unit} for {format.name}"
        raise OpError(f"{op}: {name} must be {rule}, got {group_size}.")


def _check_quantize(
    x: torch.Tensor,
    format: str,
    group_size: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> None:
    expect_dtype("quantize", "x", x)
    found = format_of("quantize", format)
    check_group_size("quantize", found, group_size)
    check_scaling("quantize", found, scaling, rounding_offset)


def _check_dequantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> None:
    op = "dequantize"
    found = format_of(op, format)
    check_group_size(op, found, group_size)
    expect_dtype(op, "q", q, (found.dtype,))
    expect_shape(op, "q", q, packed_shape(found, tuple(shape)), f"{format} codes of a tensor of shape {tuple(shape)}")
    groups = (groups_of(torch.Size(shape).numel(), group_size),)
    expect_dtype(op, "scales", scales, (torch.float32,) if found.is_integer else (torch.float32, torch.uint8))
    expect_shape(op, "scales", scales, groups, f"one scale for every {group_size} elements of q")
    expect_device(op, "scales", scales, "q", q.device)
    if zeros is not None:
        if not found.is_integer:
            raise OpError(f"{op}: zeros must be None for {format}; only integers have zero points.")
        expect_dtype(op, "zeros", zeros, (torch.int8,))
        expect_shape(op, "zeros", zeros, groups, f"one zero point for every {group_size} elements of q")
        expect_device(op, "zeros", zeros, "q", q.device)
    if dtype not in FLOATS:
        raise OpError(f"{op}: dtype must be {', '.join(name_of(d) for d in FLOATS)}, got {name_of(dtype)}.")


def check_scaling(op: str, format: Format, scaling: str, rounding_offset: int) -> None:
    """The format is scaled in that way, and rounded from that position."""
    allowed = ("symmetric", "asymmetric" if format.is_integer else "power_of_two")
    if scaling not in allowed:
        raise OpError(f"{op}: scaling of {format.name} must be {' or '.join(allowed)}, got {scaling!r}.")
    if rounding_offset < 0:
        raise OpError(f"{op}: rounding_offset must be 0 or more, got {rounding_offset}.")


def groups_of(numel: int, group_size: int) -> int:
    """Groups of so many elements; the last may be shorter."""
    return (numel + group_size - 1) // group_size


def in_groups(flat: torch.Tensor, group_size: int) -> torch.Tensor:
    """[groups, group_size], the last group filled up with zeros."""
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % group_size))
    return padded.view(groups_of(flat.numel(), group_size), group_size)


def _reference_quantize(
    x: torch.Tensor,
    format: str,
    group_size: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = format_of("quantize", format)
    with torch.no_grad():
        groups = in_groups(x.detach().contiguous().view(-1).float(), group_size)
        scales, zeros = _scales(groups, found, scaling)
        values = e8m0_to_float(scales) if scaling == "power_of_two" else scales
        usable = values.isfinite().unsqueeze(1)
        ratios = torch.where(usable, groups / torch.where(usable, values.unsqueeze(1), 1.0), 0.0)
        random = None
        if rounding_seed >= 0:
            random = random_bits(rounding_seed, 0, rounding_offset, groups.numel(), x.device).view(groups.shape)
        encode = _encode_integers if found.is_integer else _encode_floats
        codes = encode(ratios, zeros, found, random).view(-1)[: x.numel()]
        q = pack_codes(codes, found).view(found.dtype).view(packed_shape(found, x.shape))
        return q, scales, zeros


def _scales(groups: torch.Tensor, format: Format, scaling: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(scales, zeros) as `quantize` returns them; zeros are empty unless asymmetric."""
    none = groups.new_empty((0,), dtype=torch.int8)
    largest = groups.abs().amax(1)
    if scaling == "power_of_two":
        biased = (largest.view(torch.int32) >> 23).to(torch.int64)
        code = torch.where(largest == 0, 127, (biased - format.greatest_exponent).clamp(min=0))
        return torch.where(largest.isfinite(), code, 255).to(torch.uint8), none
    if scaling == "symmetric":
        scales = largest / format.largest
        return torch.where(scales == 0, 1.0, scales), none
    lowest, count = -(2.0 ** (format.bits - 1)), 2.0**format.bits - 1
    low, high = groups.amin(1).clamp(max=0), groups.amax(1).clamp(min=0)
    scales = high / count - low / count
    scales = torch.where(scales == 0, 1.0, scales)
    zeros = (lowest - low / scales).round().clamp(lowest, -lowest - 1)
    return scales, torch.where(scales.isfinite(), zeros, 0.0).to(torch.int8)


def _whole(magnitude: torch.Tensor, random: torch.Tensor | None) -> torch.Tensor:
    """Magnitudes rounded to whole numbers."""
    if random is None:
        return magnitude.round()
    below = magnitude.floor()
    return below + ((random >> 8).float() * 2.0**-24 < magnitude - below).float()


def _encode_integers(
    ratios: torch.Tensor, zeros: torch.Tensor, format: Format, random: torch.Tensor | None
) -> torch.Tensor:
    asymmetric = zeros.numel() > 0
    rounded = torch.copysign(_whole(ratios.abs(), random), ratios)
    half = 2 ** (format.bits - 1)
    if asymmetric:
        rounded = rounded + zeros.unsqueeze(1)
    lowest = -half if asymmetric else 1 - half
    q = rounded.clamp(lowest, half - 1).to(torch.int64)
    return q & 0xFF if format.bits == 8 else q + half


def _encode_floats(
    ratios: torch.Tensor, zeros: torch.Tensor, format: Format, random: torch.Tensor | None
) -> torch.Tensor:
    magnitude = ratios.abs().clamp(max=format.largest)
    exponent = torch.frexp(magnitude).exponent.clamp(min=2 - format.bias) - 1
    step = torch.ldexp(torch.ones_like(magnitude), exponent - format.mantissa_bits)
    rounded = (_whole(magnitude / step, random) * step).contiguous()
    table = torch.tensor(magnitudes(format), dtype=torch.float32, device=ratios.device)
    code = torch.searchsorted(table, rounded)
    return code | (ratios.signbit().to(torch.int64) << (format.bits - 1))


def _reference_dequantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    found = format_of("dequantize", format)
    numel = torch.Size(shape).numel()
    values = in_groups(decode(unpack_codes(q.contiguous(), found, numel), found), group_size)
    if zeros is not None:
        values = values - zeros.unsqueeze(1)
    factors = e8m0_to_float(scales) if scales.dtype == torch.uint8 else scales
    return (values * factors.unsqueeze(1)).view(-1)[:numel].view(tuple(shape)).to(dtype, copy=True)


def _fake_quantize(
    x: torch.Tensor,
    format: str,
    group_size: int,
    scaling: str = "symmetric",
    rounding_seed: int = -1,
    rounding_offset: int = 0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    found = format_of("quantize", format)
    groups = groups_of(x.numel(), group_size)
    return (
        x.new_empty(packed_shape(found, x.shape), dtype=found.dtype),
        x.new_empty((groups,), dtype=torch.uint8 if scaling == "power_of_two" else torch.float32),
        x.new_empty((groups if scaling == "asymmetric" else 0,), dtype=torch.int8),
    )


def _fake_dequantize(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    format: str,
    group_size: int,
    shape: Sequence[int],
    dtype: torch.dtype,
) -> torch.Tensor:
    return q.new_empty(tuple(shape), dtype=dtype)


DEFINITIONS = (
    OpDefinition(
        schema=(
            'quantize(Tensor x, str format, int group_size, str scaling="symmetric", int rounding_seed=-1, '
            "int rounding_offset=0) -> (Tensor, Tensor, Tensor)"
        ),
        check=_check_quantize,
        reference=_reference_quantize,
        fake=_fake_quantize,
        autograd=None,
        cases=QUANTIZE_CASES,
    ),
    OpDefinition(
        schema=(
            "dequantize(Tensor q, Tensor scales, Tensor? zeros, str format, int group_size, SymInt[] shape, "
            "ScalarType dtype) -> Tensor"
        ),
        check=_check_dequantize,
        reference=_reference_dequantize,
        fake=_fake_dequantize,
        autograd=None,
        cases=DEQUANTIZE_CASES,
    ),
)
