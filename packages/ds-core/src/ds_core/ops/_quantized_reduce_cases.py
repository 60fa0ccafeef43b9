"""Conformance cases of quantized_reduce, quantized_reduce_quantize and swizzle_quantize."""

from __future__ import annotations

from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["REDUCE_CASES", "REQUANTIZE_CASES", "SWIZZLE_CASES"]

_BITS = {"int8": 8, "int4": 4, "e4m3fn": 8, "e5m2": 8, "e3m2": 6, "e2m3": 6, "e2m1": 4}
_FINITE = {"e4m3fn": 0x7F, "e5m2": 0x7C}
"""First magnitude code that is no number."""

_SHAPES = (
    # name, ranks, numel, group_size, layout
    ("two_ranks", 2, 2048, 256, Layout.CONTIGUOUS),
    ("one_rank", 1, 300, 64, Layout.CONTIGUOUS),
    ("odd", 3, 1003, 96, Layout.CONTIGUOUS),
    ("small_groups", 8, 27, 4, Layout.CONTIGUOUS),
    ("one_group", 5, 777, 4096, Layout.CONTIGUOUS),
    ("large_group", 2, 10003, 6000, Layout.CONTIGUOUS),
    ("empty", 4, 0, 64, Layout.CONTIGUOUS),
    ("strided", 3, 320, 32, Layout.STRIDED),
    ("unaligned", 3, 999, 32, Layout.OFFSET),
)


def _packed(format: str, numel: int) -> int:
    return {8: numel, 4: (numel + 1) // 2, 6: (numel + 3) // 4 * 3}[_BITS[format]]


def _chunks(
    format: str,
    scaling: str,
    ranks: int,
    numel: int,
    group_size: int,
    layout: Layout = Layout.CONTIGUOUS,
    scale_fill: Fill = Fill.SQUARES,
) -> dict[str, TensorSpec | None]:
    groups = (ranks, -(-numel // group_size))
    finite = _FINITE.get(format)
    codes = TensorSpec(
        (ranks, _packed(format, numel)),
        "int8" if format == "int8" else "uint8",
        Fill.INTEGERS if finite is None else Fill.CODES,
        1.0 if finite is None else finite,
        layout,
    )
    # Exponents of E8M0 near both 0 (scales below the normal numbers) and 127.
    exponents = TensorSpec(groups, "uint8", Fill.CODES, 24, layout)
    return {
        "q": codes,
        "scales": exponents if scaling == "power_of_two" else TensorSpec(groups, "float32", scale_fill, layout=layout),
        "zeros": TensorSpec(groups, "int8", Fill.INTEGERS, layout=layout) if scaling == "asymmetric" else None,
    }


def _call(format: str, numel: int, group_size: int, average: bool) -> dict[str, object]:
    return {"format": format, "group_size": group_size, "numel": numel, "average": average}


_WAYS = (
    # formats and scalings that go through every shape; those of _MORE, through a few
    ("int8", "symmetric"),
    ("int8", "asymmetric"),
    ("int4", "symmetric"),
    ("int4", "asymmetric"),
    ("e4m3fn", "symmetric"),
    ("e3m2", "power_of_two"),
)
_MORE = (("e5m2", "power_of_two"), ("e2m3", "symmetric"), ("e2m1", "power_of_two"))

REDUCE_CASES = (
    *(
        OpCase(
            f"{format}_{scaling}_{name}",
            _chunks(format, scaling, ranks, numel, group_size, layout),
            {**_call(format, numel, group_size, name in ("odd", "unaligned")), "dtype": "float32"},
        )
        for format, scaling in _WAYS
        for name, ranks, numel, group_size, layout in _SHAPES
    ),
    *(
        OpCase(
            f"{format}_{scaling}_to_{dtype}",
            _chunks(format, scaling, 3, 501, 32),
            {**_call(format, 501, 32, dtype == "float16"), "dtype": dtype},
        )
        for format, scaling in (*_WAYS, *_MORE)
        for dtype in ("bfloat16", "float16")
    ),
    OpCase(
        "scales_that_are_not_finite",
        _chunks("int8", "symmetric", 3, 999, 8, scale_fill=Fill.SPECIAL),
        {**_call("int8", 999, 8, False), "dtype": "float32"},
    ),
)

REQUANTIZE_CASES = (
    *(
        OpCase(
            f"{format}_{scaling}_{name}",
            _chunks(format, scaling, ranks, numel, group_size, layout),
            {
                **_call(format, numel, group_size, name in ("odd", "unaligned")),
                "out_format": format,
                "out_group_size": group_size,
                "out_scaling": scaling,
            },
        )
        for format, scaling in _WAYS
        for name, ranks, numel, group_size, layout in _SHAPES
    ),
    *(
        OpCase(
            f"int4_to_{format}_{scaling}{'' if seed < 0 else '_stochastic'}",
            _chunks("int4", "symmetric", 4, 2503, 64),
            {
                **_call("int4", 2503, 64, True),
                "out_format": format,
                "out_group_size": 160,
                "out_scaling": scaling,
                "rounding_seed": seed,
                "rounding_offset": 0 if seed < 0 else 2**32 - 1100,
            },
        )
        for format, scaling in (*_WAYS, *_MORE)
        for seed in (-1, 3)
    ),
    *(
        OpCase(
            f"scales_that_are_not_finite_{scaling}",
            _chunks("int8", "symmetric", 3, 999, 8, scale_fill=Fill.SPECIAL),
            {
                **_call("int8", 999, 8, False),
                "out_format": "int8",
                "out_group_size": 32,
                "out_scaling": scaling,
            },
        )
        for scaling in ("symmetric", "asymmetric")
    ),
)

SWIZZLE_CASES = tuple(
    OpCase(
        f"{format}_{scaling}_{name}",
        {"x": TensorSpec(shape, dtype, fill, layout=layout)},
        {
            "format": format,
            "group_size": group_size,
            "nodes": nodes,
            "ranks_per_node": ranks,
            "scaling": scaling,
            "rounding_seed": 5 if name == "stochastic" else -1,
            "rounding_offset": 2**32 - 1000 if name == "stochastic" else 0,
        },
    )
    for format, scaling in (*_WAYS, *_MORE)
    for name, shape, group_size, nodes, ranks, dtype, fill, layout in (
        ("even", (8, 256), 64, 2, 4, "float32", Fill.NORMAL, Layout.CONTIGUOUS),
        ("odd_chunks", (6 * 77,), 32, 3, 2, "bfloat16", Fill.NORMAL, Layout.CONTIGUOUS),
        ("one_node", (4, 100), 4096, 1, 4, "float16", Fill.NORMAL, Layout.CONTIGUOUS),
        ("tiny_chunks", (6,), 4, 3, 2, "float32", Fill.NORMAL, Layout.CONTIGUOUS),
        ("empty", (0, 5), 64, 2, 2, "float32", Fill.NORMAL, Layout.CONTIGUOUS),
        ("transposed", (30, 50), 64, 5, 3, "float32", Fill.NORMAL, Layout.TRANSPOSED),
        ("unaligned", (999,), 32, 3, 3, "bfloat16", Fill.NORMAL, Layout.OFFSET),
        ("special", (2000,), 100, 2, 2, "float32", Fill.SPECIAL, Layout.CONTIGUOUS),
        ("large_group", (20012,), 7000, 1, 2, "float32", Fill.WIDE, Layout.CONTIGUOUS),
        ("stochastic", (2502,), 64, 3, 2, "float32", Fill.NORMAL, Layout.CONTIGUOUS),
    )
    if (format, scaling) in _WAYS[1:4] or name in ("even", "odd_chunks", "special")
)
