"""Conformance cases of the linear layers with quantized weights."""

from __future__ import annotations

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec

__all__ = ["W8A8_CASES", "WEIGHT_ONLY_CASES"]

_SUMS = Exactness(ulps=1, relative=2e-6)
"""float32 sums run in another order than the reference's, which is exact until its one rounding."""

_FLOATS = (("e4m3fn", 8), ("e5m2", 8), ("e3m2", 6), ("e2m3", 6), ("e2m1", 4))
_FINITE: dict[str | None, int] = {"e4m3fn": 0x7F, "e5m2": 0x7C}
"""First magnitude code that is no number; the smaller formats have none."""

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
    format: str | None = None,
) -> OpCase:
    blocks = (outputs + 15) // 16
    groups = (-(-inputs // group_size), blocks * 16)
    return OpCase(
        name,
        {
            "x": TensorSpec((*lead, inputs), dtype, fill, layout=layout),
            "codes": TensorSpec(
                (blocks, -(-inputs // 64) * 64 * 16 * bits // 8),
                "uint8",
                Fill.CODES if format in _FINITE else Fill.INTEGERS,
                _FINITE.get(format, 1),
            ),
            "scales": TensorSpec(groups, "float32", Fill.NORMAL, 0.01),
            "zeros": TensorSpec(groups, "int8", Fill.INTEGERS) if zeros else None,
            "bias": TensorSpec((outputs,), bias) if bias is not None else None,
        },
        {
            "bits": bits,
            "group_size": group_size,
            "out_features": outputs,
            **({} if format is None else {"format": format}),
        },
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


def _float_cases() -> tuple[OpCase, ...]:
    ways = {name: (lead, inputs, outputs, group) for name, lead, inputs, outputs, group in _SHAPES}
    return tuple(
        _case(
            f"{name}_{format}_{dtype}",
            *ways[name],
            bits=bits,
            dtype=dtype,
            bias=dtype if name == "odd" else None,
            format=format,
            exactness=_SUMS,
            levels=_SUMS,
        )
        for format, bits in _FLOATS
        for name, dtype in (
            ("one_row", "float16"),
            ("one_row", "bfloat16"),
            ("odd", "float32"),
            ("odd", "float16"),
            ("small_groups", "bfloat16"),
            ("few_rows", "float32"),
            ("more_rows", "bfloat16"),
            ("one_input", "float32"),
            ("no_rows", "float32"),
            ("no_outputs", "float16"),
        )
    )


WEIGHT_ONLY_CASES = (*_cases(_SUMS, _SUMS), *_float_cases())
W8A8_CASES = _cases(Exactness(), Exactness())
