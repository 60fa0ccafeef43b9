"""Low-precision number formats: what their codes mean, and how codes lie in bytes.

Note [Packing]
    Codes of 8 bits are stored one a byte. Codes of 4 bits are stored two a byte, the first in the low nibble. Codes of
    6 bits are stored four in three bytes: code `j` of the four takes bits ``6 j`` to ``6 j + 5`` of the little-endian
    24-bit number that the bytes form. Elements follow each other in memory order of the dense tensor; what is left of
    the last byte (or three bytes) is 0.

Source: formats of 8 bits: P. Micikevicius et al., "FP8 formats for deep learning", 2022, and the OCP 8-bit floating
point specification 1.0; of 6 and 4 bits, and scales that are powers of two (E8M0): OCP Microscaling formats (MX)
specification 1.0, sections 5.3 and 5.4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ds_core.errors import OpError, did_you_mean

__all__ = [
    "FORMATS",
    "Format",
    "decode",
    "e8m0_to_float",
    "format_of",
    "magnitudes",
    "pack_codes",
    "packed_shape",
    "unpack_codes",
]


@dataclass(frozen=True, slots=True)
class Format:
    """One number format of at most 8 bits.

    Args:
        name: as users write it.
        number: in ``enum ds_format`` of ds_kernel/quantize.h.
        bits: of a code.
        mantissa_bits: stored ones; 0 for integers.
        bias: of the exponent; 0 for integers.
        largest: greatest finite magnitude that quantizing produces.
        first_special: magnitude code from which on codes are infinity or NaN; ``2 ** (bits - 1)`` if there are none.
    """

    name: str
    number: int
    bits: int
    mantissa_bits: int
    bias: int
    largest: float
    first_special: int

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers, else floating-point numbers of sign, exponent and mantissa."""
        return self.mantissa_bits == 0

    @property
    def greatest_exponent(self) -> int:
        """Of the largest finite number, as in ``largest = 1.xxx * 2 ** exponent``."""
        return math.frexp(self.largest)[1] - 1

    @property
    def codes_per_unit(self) -> int:
        """Codes in the smallest whole number of bytes."""
        return {8: 1, 4: 2, 6: 4}[self.bits]

    @property
    def dtype(self) -> torch.dtype:
        """Of a tensor of codes."""
        return torch.int8 if self.name == "int8" else torch.uint8


FORMATS: Mapping[str, Format] = {
    each.name: each
    for each in (
        Format("int8", 1, 8, 0, 0, 127.0, 128),
        Format("int4", 2, 4, 0, 0, 7.0, 8),
        Format("e4m3fn", 3, 8, 3, 7, 448.0, 0x7F),
        Format("e5m2", 4, 8, 2, 15, 57344.0, 0x7C),
        Format("e3m2", 5, 6, 2, 3, 28.0, 32),
        Format("e2m3", 6, 6, 3, 1, 7.5, 32),
        Format("e2m1", 7, 4, 1, 1, 6.0, 8),
    )
}
"""Every format by name."""


def format_of(op: str, name: str) -> Format:
    """The format called `name`.

    Raises:
        OpError: there is none.
    """
    if name not in FORMATS:
        raise OpError(f"{op}: format must be one of {', '.join(FORMATS)}, got {name!r}.{did_you_mean(name, FORMATS)}")
    return FORMATS[name]


def packed_shape(format: Format, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
    """Shape of the codes of a tensor: its own for codes of a byte, one dimension of bytes for smaller ones."""
    if format.bits == 8:
        return tuple(shape)
    numel = torch.Size(shape).numel()
    units = (numel + format.codes_per_unit - 1) // format.codes_per_unit
    return (units * format.codes_per_unit * format.bits // 8,)


def pack_codes(codes: torch.Tensor, format: Format) -> torch.Tensor:
    """Flat codes (int64, each below ``2 ** bits``) as flat uint8, see Note [Packing]."""
    if format.bits == 8:
        return codes.to(torch.uint8)
    units = torch.nn.functional.pad(codes, (0, -codes.numel() % format.codes_per_unit)).view(-1, format.codes_per_unit)
    word = sum(units[:, j] << (format.bits * j) for j in range(format.codes_per_unit))
    size = format.bits * format.codes_per_unit // 8
    parts = [(torch.as_tensor(word) >> (8 * j)) & 0xFF for j in range(size)]
    return torch.stack(parts, 1).view(-1).to(torch.uint8)


def unpack_codes(packed: torch.Tensor, format: Format, numel: int) -> torch.Tensor:
    """The first `numel` codes as flat int64."""
    if format.bits == 8:
        return packed.reshape(-1).view(torch.uint8).to(torch.int64)
    size = format.bits * format.codes_per_unit // 8
    parts = packed.reshape(-1, size).to(torch.int64)
    word = sum(parts[:, j] << (8 * j) for j in range(size))
    codes = [(torch.as_tensor(word) >> (format.bits * j)) & (2**format.bits - 1) for j in range(format.codes_per_unit)]
    return torch.stack(codes, 1).view(-1)[:numel]


def decode(codes: torch.Tensor, format: Format) -> torch.Tensor:
    """float32 values of int64 codes; integers without their zero point."""
    return torch.tensor(_values(format.name), dtype=torch.float32, device=codes.device)[codes]


def magnitudes(format: Format) -> tuple[float, ...]:
    """The finite magnitudes of a floating-point format in order, which is the order of their codes."""
    return _values(format.name)[: format.first_special]


def e8m0_to_float(scales: torch.Tensor) -> torch.Tensor:
    """float32 powers of two of E8M0 codes (uint8): ``2 ** (code - 127)``, NaN for 255."""
    exponents = scales.to(torch.int64)
    values = torch.ldexp(torch.ones_like(exponents, dtype=torch.float64), exponents - 127).to(torch.float32)
    return torch.where(exponents == 255, float("nan"), values)


@functools.cache
def _values(name: str) -> tuple[float, ...]:
    format = FORMATS[name]
    if name == "int8":
        return tuple(float(code if code < 128 else code - 256) for code in range(256))
    if name == "int4":
        return tuple(float(code - 8) for code in range(16))
    half = 2 ** (format.bits - 1)
    return tuple((-1.0 if code >= half else 1.0) * _magnitude(format, code % half) for code in range(2 * half))


def _magnitude(format: Format, code: int) -> float:
    exponent, mantissa = divmod(code, 2**format.mantissa_bits)
    if code >= format.first_special:
        return float("inf") if _has_infinity(format) and mantissa == 0 else float("nan")
    if exponent == 0:
        return math.ldexp(mantissa, 1 - format.bias - format.mantissa_bits)
    return math.ldexp(2**format.mantissa_bits + mantissa, exponent - format.bias - format.mantissa_bits)


def _has_infinity(format: Format) -> bool:
    """Only E5M2 follows IEEE 754 here; E4M3FN has NaN alone, and the smaller formats have neither."""
    return format.name == "e5m2"
