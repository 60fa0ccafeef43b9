"""Conformance cases of quantize and dequantize."""

from __future__ import annotations

from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["DEQUANTIZE_CASES", "QUANTIZE_CASES"]

_BITS = {"int8": 8, "int4": 4, "e4m3fn": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}
_WAYS = tuple(
    (format, scaling)
    for format in _BITS
    for scaling in ("symmetric", "asymmetric" if format.startswith("int") else "power_of_two")
)
_SHAPES = (
    ("even", (8, 256), 256, Layout.CONTIGUOUS),
    ("short_last_group", (1003,), 96, Layout.CONTIGUOUS),
    ("one_group", (77,), 4096, Layout.CONTIGUOUS),
    ("small_groups", (19,), 4, Layout.CONTIGUOUS),
    ("microscaling", (40, 37), 32, Layout.CONTIGUOUS),
    ("large_group", (5, 2003), 5000, Layout.CONTIGUOUS),
    ("empty", (0, 3), 64, Layout.CONTIGUOUS),
    ("scalar", (), 64, Layout.CONTIGUOUS),
    ("transposed", (30, 50), 64, Layout.TRANSPOSED),
    ("strided", (30, 50), 64, Layout.STRIDED),
    ("unaligned", (999,), 32, Layout.OFFSET),
)
_VALUES = (
    ("zeros", Fill.ZEROS, 1.0),
    ("wide", Fill.WIDE, 1.0),
    ("special", Fill.SPECIAL, 1.0),
    ("positive", Fill.SQUARES, 1.0),
    ("tiny", Fill.NORMAL, 1e-44),
    ("small", Fill.NORMAL, 1e-38),
    ("huge", Fill.NORMAL, 8e37),
)


def _shaped(format: str, scaling: str) -> tuple[OpCase, ...]:
    return tuple(
        OpCase(
            f"{format}_{scaling}_{name}_{dtype}",
            {"x": TensorSpec(shape, dtype, layout=layout)},
            {"format": format, "group_size": group, "scaling": scaling},
        )
        for name, shape, group, layout in _SHAPES
        for dtype in ("float32", "bfloat16", "float16")
        if dtype == "float32" or name in ("short_last_group", "large_group", "unaligned")
    )


def _valued(format: str, scaling: str) -> tuple[OpCase, ...]:
    return tuple(
        OpCase(
            f"{format}_{scaling}_{name}{'' if seed < 0 else '_stochastic'}",
            {"x": TensorSpec((3003,), fill=fill, scale=scale)},
            {
                "format": format,
                "group_size": 64,
                "scaling": scaling,
                "rounding_seed": seed,
                "rounding_offset": 0 if seed < 0 else 2**32 - 1100,
            },
        )
        for name, fill, scale in _VALUES
        for seed in (-1, 3)
    )


def _packed(format: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    numel = 1
    for size in shape:
        numel *= size
    return {8: shape, 4: ((numel + 1) // 2,), 6: ((numel + 3) // 4 * 3,)}[_BITS[format]]


def _back(format: str, scaling: str) -> tuple[OpCase, ...]:
    cases = []
    for name, shape, group, layout in _SHAPES:
        numel = 1
        for size in shape:
            numel *= size
        groups = (-(-numel // group),)
        scales = (
            TensorSpec(groups, "uint8", Fill.INTEGERS)
            if scaling == "power_of_two"
            else TensorSpec(groups, "float32", Fill.SQUARES)
        )
        q_shape = _packed(format, shape)
        q_layout = Layout.CONTIGUOUS if layout is Layout.TRANSPOSED and len(q_shape) < 2 else layout
        for dtype in ("float32", "bfloat16", "float16"):
            cases.append(
                OpCase(
                    f"{format}_{scaling}_{name}_{dtype}",
                    {
                        "q": TensorSpec(
                            q_shape, "int8" if format == "int8" else "uint8", Fill.INTEGERS, layout=q_layout
                        ),
                        "scales": scales,
                        "zeros": TensorSpec(groups, "int8", Fill.INTEGERS) if scaling == "asymmetric" else None,
                    },
                    {"format": format, "group_size": group, "shape": shape, "dtype": dtype},
                )
            )
    return tuple(cases)


QUANTIZE_CASES = tuple(
    case for format, scaling in _WAYS for case in (*_shaped(format, scaling), *_valued(format, scaling))
)
DEQUANTIZE_CASES = tuple(case for format, scaling in _WAYS for case in _back(format, scaling))
