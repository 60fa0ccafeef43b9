"""Linear layers with quantized weights: few rows, which memory bounds, and many, which arithmetic bounds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import torch
from kernel_points import KernelPoint

from ds_core import ops
from ds_core.ops import PackedWeight

OUTPUTS, INPUTS, QUICK_OUTPUTS, QUICK_INPUTS = 11008, 4096, 96, 256
GROUP = 128
ROWS = (1, 2, 4, 8, 256)
UNITS = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Call = Callable[[], object]


def points(quick: bool) -> Iterator[KernelPoint]:
    """The up-projection of a 7-billion-parameter model, with 1 to 8 rows (generating) and 256 (reading a prompt)."""
    outputs, inputs = (QUICK_OUTPUTS, QUICK_INPUTS) if quick else (OUTPUTS, INPUTS)
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(0)) / 64
    for bits in (8, 4):
        packed = ops.pack_weight(weight, bits, GROUP)
        for dtype in (torch.float32, torch.bfloat16):
            for rows in ROWS:
                yield _weight_only(weight, packed, rows, dtype)
    for bits, group in ((8, inputs), (8, GROUP), (4, GROUP)):
        packed = ops.pack_weight(weight, bits, group)
        for rows in ROWS:
            yield _w8a8(weight, packed, rows)


def _activations(rows: int, inputs: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).to(dtype)


def _moved(packed: PackedWeight, x: torch.Tensor) -> int:
    return packed.nbytes() + x.nbytes + x.shape[0] * packed.out_features * x.element_size()


def _weight_only(weight: torch.Tensor, packed: PackedWeight, rows: int, dtype: torch.dtype) -> KernelPoint:
    x = _activations(rows, packed.in_features, dtype)
    peer, peer_name = _linear_of_torch(weight, packed, x)
    return KernelPoint(
        f"linear int{packed.bits}, {UNITS[dtype]}, {rows} rows",
        _moved(packed, x),
        2 * rows * weight.numel(),
        lambda: ops.linear_weight_only(x, packed),
        peer,
        peer_name,
        unit="fp32",
    )


def _w8a8(weight: torch.Tensor, packed: PackedWeight, rows: int) -> KernelPoint:
    x = _activations(rows, packed.in_features, torch.float32)
    one_scale = packed.group_size == packed.in_features
    peer = _dynamic_linear(weight, x) if one_scale and packed.bits == 8 else None
    return KernelPoint(
        f"linear w{packed.bits}a8, {'a scale an output' if one_scale else f'groups of {GROUP}'}, {rows} rows",
        _moved(packed, x),
        2 * rows * weight.numel(),
        lambda: ops.linear_w8a8(x, packed),
        peer,
        "torch dynamic quantized linear",
        unit="int8",
    )


def _linear_of_torch(weight: torch.Tensor, packed: PackedWeight, x: torch.Tensor) -> tuple[Call, str]:
    """torch's own kernel for quantized weights where it has one for these activations, else its float layer."""
    aten = torch.ops.aten
    if x.dtype == torch.bfloat16 and packed.bits == 8 and hasattr(aten, "_weight_int8pack_mm"):
        scales = weight.abs().amax(1) / 127
        q = (weight / scales[:, None]).round().to(torch.int8)
        low = scales.bfloat16()
        return lambda: aten._weight_int8pack_mm(x, q, low), "torch _weight_int8pack_mm (a scale an output)"
    if x.dtype == torch.bfloat16 and packed.bits == 4 and hasattr(aten, "_weight_int4pack_mm_for_cpu"):
        codes = torch.randint(0, 16, tuple(weight.shape), dtype=torch.int32)
        theirs = aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        both = torch.ones(weight.shape[1] // GROUP, weight.shape[0], 2, dtype=torch.bfloat16)
        return lambda: aten._weight_int4pack_mm_for_cpu(x, theirs, GROUP, both), "torch _weight_int4pack_mm_for_cpu"
    plain = weight.to(x.dtype)
    return lambda: torch.nn.functional.linear(x, plain), f"torch linear, {UNITS[x.dtype]} weight"


def _dynamic_linear(weight: torch.Tensor, x: torch.Tensor) -> Call:
    scales = weight.abs().amax(1).double() / 127
    zeros = torch.zeros(weight.shape[0], dtype=torch.int64)
    with warnings.catch_warnings():  # torch announces that these tensors will go
        warnings.simplefilter("ignore")
        q = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(q, None)
    return lambda: torch.ops.quantized.linear_dynamic(x, packed)
