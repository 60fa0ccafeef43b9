"""Conformance cases of lamb_moments_ and lamb_apply_."""

from __future__ import annotations

from typing import Any

from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["APPLY_CASES", "MOMENTS_CASES"]

_SCALARS: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-6, "weight_decay": 0.01, "step": 3}


def _pair(name: str, bounds: tuple[int, ...], numel: int | None = None, **options: Any) -> tuple[OpCase, OpCase]:
    """A case of each op."""
    count = max(bounds, default=0) if numel is None else numel
    dtypes = {key: options.pop(key, "float32") for key in ("param", "grad", "state")}
    copy, factor = options.pop("copy", None), options.pop("factor", None)
    fill, layout = options.pop("fill", Fill.NORMAL), options.pop("layout", Layout.CONTIGUOUS)

    def spec(dtype: str, filled: Fill = Fill.NORMAL, scale: float = 1.0) -> TensorSpec:
        return TensorSpec((count,), dtype, filled, scale, layout)

    states = {
        "exp_avg": spec(dtypes["state"], Fill.NORMAL, 0.05),
        "exp_avg_sq": spec(dtypes["state"], Fill.SQUARES, 0.1),
    }
    scalars = {**_SCALARS, **options, "bounds": list(bounds)}
    moments = {
        "param": spec(dtypes["param"]),
        "grad": spec(dtypes["grad"], fill, 0.1),
        **states,
        "grad_factor": None if factor is None else TensorSpec((), "float32", Fill.NORMAL, factor),
    }
    apply = {
        "param": spec(dtypes["param"]),
        **states,
        "ratios": TensorSpec((len(bounds) // 2,), "float32"),
        "copy_out": None if copy is None else spec(copy, Fill.ZEROS),
    }
    return OpCase(name, moments, scalars), OpCase(name, apply, {**scalars, "lr": 0.01})


_PAIRS = (
    _pair("nothing", ()),
    _pair("no_segments", (), 5),
    _pair("empty_segments", (0, 0, 3, 3), 3),
    *(_pair(f"numel_{n}", (0, n)) for n in (1, 15, 17, 1024, 1025, 65_536, 65_537, 200_003)),
    _pair("many", (0, 7, 7, 8, 16, 5000, 5008, 75_000, 75_000, 75_001), 75_016),
    *(
        _pair(f"param_{p}_grad_{g}_state_{s}", (0, 700, 701, 1543), 1544, param=p, grad=g, state=s, copy=c)
        for p, g, s, c in (
            ("bfloat16", "float16", "float32", "float16"),
            ("float16", "float32", "bfloat16", "bfloat16"),
            ("float32", "bfloat16", "float16", "bfloat16"),
            ("float32", "bfloat16", "float32", "float32"),
        )
    ),
    _pair("eps_inside", (3, 1543), eps_inside_sqrt=True),
    _pair("no_bias_correction", (0, 1543), bias_correction=False),
    _pair("no_decay", (0, 1543), weight_decay=0.0),
    _pair("factor", (0, 1543), factor=0.37),
    _pair("special", (0, 1000, 1000, 4099), fill=Fill.SPECIAL),
    _pair("wide", (0, 4099), fill=Fill.WIDE),
    _pair("unaligned", (1, 4099), layout=Layout.OFFSET, copy="bfloat16", grad="bfloat16"),
    _pair("stochastic", (5, 2099, 2100, 70_000), param="bfloat16", state="float16", copy="bfloat16", rounding_seed=4),
    _pair("stochastic_offset", (5, 4099), param="float16", rounding_seed=4, rounding_offset=2**32 - 1100),
)

MOMENTS_CASES = tuple(moments for moments, _ in _PAIRS)
APPLY_CASES = tuple(apply for _, apply in _PAIRS)
