"""A quantized weight as the matrix kernels read it: one layout for every device and instruction set.

Note [Packed weights]
    ``ds_kernel/matmul.h`` states the layout. Outputs come in blocks of 16 and inputs are filled up to a multiple of 64,
    so a vector of outputs is one load at any width, a dword is what integer dot products take, and 64 inputs of a block
    are the right-hand tile of a matrix unit. What fills up is never multiplied with anything but 0. Codes of 6 bits are
    split into 4 and 2 bits, so that words stay words: four codes come out of two of them with shifts and masks alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ds_core.errors import OpError, did_you_mean
from ds_core.ops._formats import FORMATS, Format, decode, e8m0_to_float, format_of, unpack_codes
from ds_core.ops._quantize import quantize
from ds_core.ops.checks import expect_device, expect_dtype, expect_shape

__all__ = [
    "FLOAT_FORMATS",
    "INTEGER",
    "PackedWeight",
    "format_number",
    "groups_of",
    "pack_codes_by_outputs",
    "pack_weight",
    "packed_bytes",
    "unpack_values",
]

BLOCK = 16
UNIT = 64

INTEGER = "integer"
"""Format of a weight whose codes are integers of `bits` bits."""

FLOAT_FORMATS = tuple(name for name, format in FORMATS.items() if not format.is_integer)
"""Formats of a weight whose codes are small floats."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """The quantized weight of a linear layer, see Note [Packed weights]. Made by `pack_weight`.

    Args:
        codes: [ceil(out_features / 16), bytes of a block] uint8.
        scales: [groups, ceil(out_features / 16) * 16] float32.
        zeros: int8 like `scales`, or None where every zero point is 0.
        bits: of a code: 8, 6 or 4.
        group_size: inputs that share a scale; `in_features` for one scale an output.
        out_features, in_features: of the layer.
        format: ``integer``, or the float format of the codes, see `FLOAT_FORMATS`.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    group_size: int
    out_features: int
    in_features: int
    format: str = INTEGER

    def nbytes(self) -> int:
        """Memory that it takes, and that one row of activations reads."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight, [out_features, in_features]."""
        values = unpack_values(
            self.codes,
            self.scales,
            self.zeros,
            self.bits,
            self.group_size,
            self.out_features,
            self.in_features,
            self.format,
        )
        return values.to(dtype)


def pack_weight(
    weight: torch.Tensor,
    format: str | int = "int4",
    group_size: int = 128,
    *,
    bits: int | None = None,
    scaling: str = "symmetric",
) -> PackedWeight:
    """`weight` quantized by groups along its inputs, and packed.

    Args:
        weight: [out_features, in_features], float32, bfloat16 or float16.
        format: of `ds_core.ops.quantize`: ``int8``, ``int4``, ``e4m3fn``, ``e5m2``, ``e3m2``, ``e2m3`` or ``e2m1``; 8
            and 4 mean the integers.
        group_size: a multiple of 8, or `in_features` or more for one scale an output.
        bits: in place of `format`: 8 or 4, for integers of that size.
        scaling: ``symmetric``, for integers ``asymmetric``, for floats ``power_of_two``, see `ds_core.ops.quantize`.

    Raises:
        OpError: an argument does not fit.

    Source: fp6 weights with a float scale an output: H. Xia et al., "FP6-LLM: efficiently serving large language models
    through FP6-centric algorithm-system co-design", 2024.
    """
    op = "pack_weight"
    expect_dtype(op, "weight", weight)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise OpError(f"{op}: weight must be [out_features, in_features], got shape {tuple(weight.shape)}.")
    found_format = _format_asked(op, format if bits is None else bits)
    inputs = weight.shape[1]
    kind = INTEGER if found_format.is_integer else found_format.name
    check_grouping(op, found_format.bits, group_size, inputs, kind)
    size = group_size if group_size < inputs else _round_up(inputs, UNIT)
    filled = torch.nn.functional.pad(weight.detach(), (0, -inputs % size))
    found = quantize(filled, found_format.name, size, scaling=scaling)
    q = unpack_codes(found.q, found_format, filled.numel()).view(filled.shape)[:, :inputs]
    if found_format.is_integer:
        q = decode(q, found_format)
    scales = e8m0_to_float(found.scales) if scaling == "power_of_two" else found.scales
    return pack_codes_by_outputs(
        q.to(torch.int8 if found_format.is_integer else torch.uint8),
        scales.view(weight.shape[0], -1),
        None if found.zeros is None else found.zeros.view(weight.shape[0], -1),
        found_format.bits,
        group_size,
        format=kind,
    )


def pack_codes_by_outputs(
    q: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    group_size: int,
    *,
    format: str = INTEGER,
) -> PackedWeight:
    """Codes that are there already, packed: for weights that were quantized elsewhere.

    Args:
        q: [out_features, in_features] int8, from -8 to 7 for 4 bits; for floats uint8, each code in the low bits
            (``weight.view(torch.uint8)`` of a ``torch.float8_e4m3fn`` or ``torch.float8_e5m2`` one).
        scales: [out_features, groups] float32.
        zeros: int8 like `scales`, or None; the weight is ``(q - zero) * scale``. None for floats.
        bits: of a code: 8, 6 or 4.
        group_size: as for `pack_weight`.
        format: ``integer``, or the float format of the codes.

    Raises:
        OpError: an argument does not fit.
    """
    op = "pack_codes_by_outputs"
    integers = format == INTEGER
    expect_dtype(op, "q", q, (torch.int8 if integers else torch.uint8,))
    if q.dim() != 2 or q.shape[1] < 1:
        raise OpError(f"{op}: q must be [out_features, in_features], got shape {tuple(q.shape)}.")
    outputs, inputs = q.shape
    check_grouping(op, bits, group_size, inputs, format)
    check_zeros(op, zeros, format)
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if integers else (0, 2**bits - 1)
    if bits < 8 and q.numel() > 0 and (int(q.min()) < lowest or int(q.max()) > highest):
        raise OpError(
            f"{op}: q of {bits} bits must be from {lowest} to {highest}, got {int(q.min())} to {int(q.max())}."
        )
    groups = (outputs, groups_of(inputs, group_size))
    for name, tensor, dtype in (("scales", scales, torch.float32), ("zeros", zeros, torch.int8)):
        if tensor is not None:
            expect_dtype(op, name, tensor, (dtype,))
            expect_shape(op, name, tensor, groups, "a value for each output and group")
            expect_device(op, name, tensor, "q", q.device)
    more = (0, 0, 0, -outputs % BLOCK)
    return PackedWeight(
        _pack(q, bits, format),
        torch.nn.functional.pad(scales, more).t().contiguous(),
        None if zeros is None else torch.nn.functional.pad(zeros, more).t().contiguous(),
        bits,
        min(group_size, inputs),
        outputs,
        inputs,
        format,
    )


def format_number(format: str) -> int:
    """Of a format of packed weights, in ``ds_linear_args``."""
    return 0 if format == INTEGER else FORMATS[format].number


def check_grouping(op: str, bits: int, group_size: int, inputs: int, format: str = INTEGER) -> None:
    """The layout serves this format with these bits and groups."""
    if format == INTEGER and bits not in (4, 8):
        raise OpError(f"{op}: bits must be 8 or 4, got {bits}. Floats of 6 bits are the formats e3m2 and e2m3.")
    if format != INTEGER and format not in FLOAT_FORMATS:
        known = (INTEGER, *FLOAT_FORMATS)
        raise OpError(f"{op}: format must be one of {', '.join(known)}, got {format!r}.{did_you_mean(format, known)}")
    if format != INTEGER and bits != FORMATS[format].bits:
        raise OpError(f"{op}: bits of {format} must be {FORMATS[format].bits}, got {bits}.")
    if group_size < 1 or (group_size < inputs and group_size % 8 != 0):
        raise OpError(
            f"{op}: group_size must be a multiple of 8, or at least in_features ({inputs}), got {group_size}."
        )


def check_zeros(op: str, zeros: torch.Tensor | None, format: str) -> None:
    """Only integers have zero points."""
    if zeros is not None and format != INTEGER:
        raise OpError(f"{op}: zeros must be None for {format}; only integers have zero points.")


def groups_of(inputs: int, group_size: int) -> int:
    """Groups along the inputs."""
    return (inputs + group_size - 1) // group_size


def packed_bytes(bits: int, inputs: int) -> int:
    """Of one block of 16 outputs."""
    return _round_up(inputs, UNIT) * BLOCK * bits // 8


def unpack_values(
    codes: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor | None,
    bits: int,
    group_size: int,
    outputs: int,
    inputs: int,
    format: str = INTEGER,
) -> torch.Tensor:
    """[outputs, inputs] float64: the weight without any rounding."""
    if format == INTEGER:
        q = unpack_integers(codes, zeros, bits, group_size, outputs, inputs).double()
    else:
        q = decode(_unpack(codes, bits, outputs, inputs), FORMATS[format]).double()
    return q * by_input(scales, group_size, outputs, inputs).double()


def unpack_integers(
    codes: torch.Tensor, zeros: torch.Tensor | None, bits: int, group_size: int, outputs: int, inputs: int
) -> torch.Tensor:
    """[outputs, inputs] int32: codes without their zero points."""
    values = _unpack(codes, bits, outputs, inputs) - (1 << (bits - 1))
    return values if zeros is None else values - by_input(zeros, group_size, outputs, inputs)


def by_input(values: torch.Tensor, group_size: int, outputs: int, inputs: int) -> torch.Tensor:
    """[outputs, inputs] of [groups, filled-up outputs]."""
    size = min(group_size, inputs)
    return values[:, :outputs].t().repeat_interleave(size, 1)[:, :inputs]


def _format_asked(op: str, format: str | int) -> Format:
    if isinstance(format, int):
        if format not in (4, 8):
            raise OpError(f"{op}: bits must be 8 or 4, got {format}. Floats of 6 bits are the formats e3m2 and e2m3.")
        return FORMATS[f"int{format}"]
    return format_of(op, format)


def _pack(q: torch.Tensor, bits: int, format: str) -> torch.Tensor:
    inputs = q.shape[1]
    filled = torch.nn.functional.pad(q, (0, -inputs % UNIT, 0, -q.shape[0] % BLOCK))
    codes = (filled.to(torch.int16) + (2 ** (bits - 1) if format == INTEGER else 0)).to(torch.uint8)
    # [block, unit of inputs, half of a 6-bit unit, nibble, byte, output], as far as there are halves and nibbles.
    split = {8: (1, 1, 4), 6: (2, 2, 4), 4: (1, 2, 4)}[bits]
    parts = codes.view(-1, BLOCK, filled.shape[1] // (split[0] * split[1] * 4), *split).permute(0, 2, 3, 4, 1, 5)
    low = parts[:, :, :, 0] if bits == 8 else (parts[:, :, :, 0] & 15) | ((parts[:, :, :, 1] & 15) << 4)
    words = [low]
    if bits == 6:
        high = [(parts[:, :, h, n] >> 4) << (4 * n + 2 * h) for h in range(2) for n in range(2)]
        words.append((high[0] | high[1] | high[2] | high[3]).unsqueeze(2))
    return torch.cat(words, 2).reshape(-1, packed_bytes(bits, inputs)).contiguous()


def _unpack(codes: torch.Tensor, bits: int, outputs: int, inputs: int) -> torch.Tensor:
    """[outputs, inputs] int32: codes as they are stored."""
    filled = _round_up(inputs, UNIT)
    words = codes.reshape(-1, filled // {8: 4, 6: 16, 4: 8}[bits], 3 if bits == 6 else 1, BLOCK, 4).to(torch.int32)
    if bits == 8:
        parts = words.unsqueeze(3)
    elif bits == 4:
        parts = torch.stack((words & 15, words >> 4), 3)
    else:
        low, high = words[:, :, :2], words[:, :, 2]
        tops = [[((high >> (4 * n + 2 * h)) & 3) << 4 for n in range(2)] for h in range(2)]
        nibbles = torch.stack((low & 15, low >> 4), 3)
        parts = nibbles | torch.stack([torch.stack(top, 2) for top in tops], 2)
    values = parts.permute(0, 4, 1, 2, 3, 5).reshape(codes.shape[0] * BLOCK, filled)
    return values[:outputs, :inputs]


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit
