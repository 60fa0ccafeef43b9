"""A quantized weight as the matrix kernels read it: one layout for every device and instruction set.

Note [Packed weights]
    ``ds_kernel/matmul.h`` states the layout. Outputs come in blocks of 16 and inputs are filled up to a multiple of 64,
    so a vector of outputs is one load at any width, a dword is what integer dot products take, and 64 inputs of a block
    are the right-hand tile of a matrix unit. What fills up is never multiplied with anything but 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ds_core.errors import OpError
from ds_core.ops._formats import FORMATS, unpack_codes
from ds_core.ops._quantize import quantize
from ds_core.ops.checks import expect_device, expect_dtype, expect_shape

__all__ = ["PackedWeight", "groups_of", "pack_codes_by_outputs", "pack_weight", "packed_bytes", "unpack_values"]

BLOCK = 16
UNIT = 64


@dataclass(frozen=True, slots=True, eq=False)
class PackedWeight:
    """An int8 or int4 weight of a linear layer, see Note [Packed weights]. Made by `pack_weight`.

    Args:
        codes: [ceil(out_features / 16), bytes of a block] uint8.
        scales: [groups, ceil(out_features / 16) * 16] float32.
        zeros: int8 like `scales`, or None where every zero point is 0.
        bits: 8 or 4.
        group_size: inputs that share a scale; `in_features` for one scale an output.
        out_features, in_features: of the layer.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None
    bits: int
    group_size: int
    out_features: int
    in_features: int

    def nbytes(self) -> int:
        """Memory that it takes, and that one row of activations reads."""
        return self.codes.nbytes + self.scales.nbytes + (0 if self.zeros is None else self.zeros.nbytes)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight, [out_features, in_features]."""
        values = unpack_values(
            self.codes, self.scales, self.zeros, self.bits, self.group_size, self.out_features, self.in_features
        )
        return values.to(dtype)


def pack_weight(
    weight: torch.Tensor, bits: int = 4, group_size: int = 128, *, scaling: str = "symmetric"
) -> PackedWeight:
    """`weight` quantized by groups along its inputs, and packed.

    Args:
        weight: [out_features, in_features], float32, bfloat16 or float16.
        bits: 8 or 4.
        group_size: a multiple of 8, or `in_features` or more for one scale an output.
        scaling: ``symmetric`` or ``asymmetric``, see `ds_core.ops.quantize`.

    Raises:
        OpError: an argument does not fit.
    """
    expect_dtype("pack_weight", "weight", weight)
    if weight.dim() != 2 or weight.shape[1] < 1:
        raise OpError(f"pack_weight: weight must be [out_features, in_features], got shape {tuple(weight.shape)}.")
    inputs = weight.shape[1]
    check_grouping("pack_weight", bits, group_size, inputs)
    size = group_size if group_size < inputs else _round_up(inputs, UNIT)
    filled = torch.nn.functional.pad(weight.detach(), (0, -inputs % size))
    found = quantize(filled, f"int{bits}", size, scaling=scaling)
    codes = unpack_codes(found.q, FORMATS[f"int{bits}"], filled.numel()).view(filled.shape)[:, :inputs]
    q = (codes - 8 if bits == 4 else codes - 256 * (codes >> 7)).to(torch.int8)
    zeros = None if found.zeros is None else found.zeros.view(weight.shape[0], -1)
    return pack_codes_by_outputs(q, found.scales.view(weight.shape[0], -1), zeros, bits, group_size)


def pack_codes_by_outputs(
    q: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None, bits: int, group_size: int
) -> PackedWeight:
    """Codes that are there already, packed: for weights that were quantized elsewhere.

    Args:
        q: [out_features, in_features] int8, from -8 to 7 for 4 bits.
        scales: [out_features, groups] float32.
        zeros: int8 like `scales`, or None; the weight is ``(q - zero) * scale``.
        bits: 8 or 4.
        group_size: as for `pack_weight`.

    Raises:
        OpError: an argument does not fit.
    """
    op = "pack_codes_by_outputs"
    expect_dtype(op, "q", q, (torch.int8,))
    if q.dim() != 2 or q.shape[1] < 1:
        raise OpError(f"{op}: q must be [out_features, in_features], got shape {tuple(q.shape)}.")
    outputs, inputs = q.shape
    check_grouping(op, bits, group_size, inputs)
    if bits == 4 and q.numel() > 0 and (int(q.min()) < -8 or int(q.max()) > 7):
        raise OpError(f"{op}: q of 4 bits must be from -8 to 7, got {int(q.min())} to {int(q.max())}.")
    groups = (outputs, groups_of(inputs, group_size))
    for name, tensor, dtype in (("scales", scales, torch.float32), ("zeros", zeros, torch.int8)):
        if tensor is not None:
            expect_dtype(op, name, tensor, (dtype,))
            expect_shape(op, name, tensor, groups, "a value for each output and group")
            expect_device(op, name, tensor, "q", q.device)
    more = (0, 0, 0, -outputs % BLOCK)
    return PackedWeight(
        _pack(q, bits),
        torch.nn.functional.pad(scales, more).t().contiguous(),
        None if zeros is None else torch.nn.functional.pad(zeros, more).t().contiguous(),
        bits,
        min(group_size, inputs),
        outputs,
        inputs,
    )


def check_grouping(op: str, bits: int, group_size: int, inputs: int) -> None:
    """The layout serves these bits and groups."""
    if bits not in (4, 8):
        raise OpError(f"{op}: bits must be 8 or 4, got {bits}.")
    if group_size < 1 or (group_size < inputs and group_size % 8 != 0):
        raise OpError(
            f"{op}: group_size must be a multiple of 8, or at least in_features ({inputs}), got {group_size}."
        )


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
) -> torch.Tensor:
    """[outputs, inputs] float64: the weight without any rounding."""
    q = unpack_integers(codes, zeros, bits, group_size, outputs, inputs)
    return q.double() * by_input(scales, group_size, outputs, inputs).double()


def unpack_integers(
    codes: torch.Tensor, zeros: torch.Tensor | None, bits: int, group_size: int, outputs: int, inputs: int
) -> torch.Tensor:
    """[outputs, inputs] int32: codes without their zero points."""
    per_word = 32 // bits
    words = codes.view(-1, _round_up(inputs, UNIT) // per_word, BLOCK, 4).to(torch.int32)
    parts = words.unsqueeze(2) if bits == 8 else torch.stack((words & 15, words >> 4), 2)
    values = parts.permute(0, 3, 1, 2, 4).reshape(codes.shape[0] * BLOCK, _round_up(inputs, UNIT))
    values = values[:outputs, :inputs] - (128 if bits == 8 else 8)
    return values if zeros is None else values - by_input(zeros, group_size, outputs, inputs)


def by_input(values: torch.Tensor, group_size: int, outputs: int, inputs: int) -> torch.Tensor:
    """[outputs, inputs] of [groups, filled-up outputs]."""
    size = min(group_size, inputs)
    return values[:, :outputs].t().repeat_interleave(size, 1)[:, :inputs]


def _pack(q: torch.Tensor, bits: int) -> torch.Tensor:
    outputs, inputs = q.shape
    per_word = 32 // bits
    filled = torch.nn.functional.pad(q, (0, -inputs % UNIT, 0, -outputs % BLOCK))
    codes = (filled.to(torch.int16) + (128 if bits == 8 else 8)).to(torch.uint8)
    parts = codes.view(-1, BLOCK, filled.shape[1] // per_word, per_word // 4, 4).permute(0, 2, 1, 3, 4)
    words = parts[:, :, :, 0] if bits == 8 else parts[:, :, :, 0] | (parts[:, :, :, 1] << 4)
    return words.reshape(-1, packed_bytes(bits, inputs)).contiguous()


def _round_up(value: int, unit: int) -> int:
    return (value + unit - 1) // unit * unit
