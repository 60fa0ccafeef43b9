"""Conformance cases of the linear layers with quantized weights."""

from __future__ import annotations

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec

__all__ = ["W8A8_CASES", "WEIGHT_ONLY_CASES"]

_SUMS = Exactness(ulps=1, relative=2e-6)
"""float32 sums run in another order than the reference's, which is exact until its one rounding."""

_SHAPES = (
    # name, shape of x without inputs, inputs, outputs, group_size
    ("one_row", (1,), 256, 64, 64),
    ("one_group", (3,), 200, 33, 200),
    ("odd", (5,), 77, 19, 32),
    ("small_groups", (7,), 136, 100, 8),
    ("few_rows", (11,), 320, 80, 128),
    ("tail_of_rows", (13,), 128, 130, 64),
    ("more_rows", (40,), 448, 96, 64),
    ("long_group", (17,), 900, 48, 600),
    ("many_rows", (251,), 72, 24, 24),
    ("three_dimensions", (2, 3), 64, 16, 64),
    ("one_input", (4,), 1, 5, 64),
    ("no_rows", (0,), 64, 32, 32),
    ("no_outputs", (3,), 64, 0, 32),
)


def _case(
    name: str,
    lead: tuple[int, ...],
    inputs: int,
    outputs: int,
    group_size: int,
    *,
    bits: int,
    dtype: str,
    zeros: bool = False,
    bias: str | None = None,
    fill: Fill = Fill.NORMAL,
    layout: Layout = Layout.CONTIGUOUS,
    exactness: Exactness,
    levels: Exactness,
) -> OpCase:
    blocks = (outputs + 15) // 16
    groups = (-(-inputs // group_size), blocks * 16)
    return OpCase(
        name,
        {
            "x": TensorSpec((*lead, inputs), dtype, fill, layout=layout),
            "codes": TensorSpec((blocks, -(-inputs // 64) * 64 * 16 * bits // 8), "uint8", Fill.INTEGERS),
            "scales": TensorSpec(groups, "float32", Fill.NORMAL, 0.01),
            "zeros": TensorSpec(groups, "int8", Fill.INTEGERS) if zeros else None,
            "bias": TensorSpec((outputs,), bias) if bias is not None else None,
        },
        {"bits": bits, "group_size": group_size, "out_features": outputs},
        exactness=exactness,
        levels=levels,
    )


def _cases(exactness: Exactness, bf16_levels: Exactness) -> tuple[OpCase, ...]:
    cases = []
    for bits in (8, 4):
        for name, lead, inputs, outputs, group_size in _SHAPES:
            for dtype in ("float32", "bfloat16", "float16"):
                cases.append(
                    _case(
                        f"{name}_int{bits}_{dtype}",
                        lead,
                        inputs,
                        outputs,
                        group_size,
                        bits=bits,
                        dtype=dtype,
                        zeros=name in ("odd", "few_rows", "more_rows"),
                        bias=dtype if name in ("odd", "one_group", "many_rows") else None,
                        exactness=exactness,
                        levels=bf16_levels if dtype == "bfloat16" else Exactness(),
                    )
                )
        for name, fill, layout in (
            ("zeros", Fill.ZEROS, Layout.CONTIGUOUS),
            ("wide", Fill.WIDE, Layout.CONTIGUOUS),
            ("special", Fill.SPECIAL, Layout.CONTIGUOUS),
            ("transposed", Fill.NORMAL, Layout.TRANSPOSED),
            ("strided", Fill.NORMAL, Layout.STRIDED),
            ("unaligned", Fill.NORMAL, Layout.OFFSET),
        ):
            cases.append(
                _case(
                    f"{name}_int{bits}",
                    (30,),
                    100,
                    40,
                    40,
                    bits=bits,
                    dtype="float32",
                    fill=fill,
                    layout=layout,
                    exactness=exactness,
                    levels=Exactness(),
                )
            )
    return tuple(cases)


WEIGHT_ONLY_CASES = _cases(_SUMS, _SUMS)
W8A8_CASES = _cases(Exactness(), Exactness())
