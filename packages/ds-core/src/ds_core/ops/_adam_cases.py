"""Conformance cases of adam_."""

from __future__ import annotations

from collections.abc import Mapping

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec

__all__ = ["CASES"]

_HYPER: Mapping[str, object] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "step": 1,
}


def _case(
    name: str,
    numel: int,
    *,
    param: str = "float32",
    grad: str = "float32",
    state: str = "float32",
    copy: str | None = None,
    factor: float | None = None,
    fill: Fill = Fill.NORMAL,
    layout: Layout = Layout.CONTIGUOUS,
    **scalars: object,
) -> OpCase:
    def spec(dtype: str, filled: Fill = Fill.NORMAL, scale: float = 1.0) -> TensorSpec:
        return TensorSpec((numel,), dtype, filled, scale, layout)

    return OpCase(
        name,
        tensors={
            "param": spec(param),
            "grad": spec(grad, fill, 0.1),
            "exp_avg": spec(state, Fill.NORMAL, 0.05),
            "exp_avg_sq": spec(state, Fill.SQUARES, 0.1),
            "copy_out": None if copy is None else spec(copy, Fill.ZEROS),
            "grad_factor": None if factor is None else TensorSpec((), "float32", Fill.NORMAL, factor),
        },
        scalars={**_HYPER, **scalars},
        exactness=Exactness(ulps=0),
    )


_SIZES = tuple(_case(f"numel_{n}", n) for n in (0, 1, 3, 15, 16, 17, 1023, 1024, 1025, 4099, 70_001))
_DTYPES = tuple(
    _case(f"param_{p}_grad_{g}_state_{s}", 1543, param=p, grad=g, state=s, step=7)
    for p in ("float32", "bfloat16", "float16")
    for g in ("float32", "bfloat16", "float16")
    for s in ("float32", "bfloat16", "float16")
)
_COPIES = tuple(
    _case(f"copy_{p}_to_{c}", 1543, param=p, copy=c)
    for p in ("float32", "bfloat16", "float16")
    for c in ("float32", "bfloat16", "float16")
)
_MODES = (
    _case("coupled_decay", 1543, adamw=False),
    _case("no_decay", 1543, weight_decay=0.0),
    _case("no_decay_coupled", 1543, weight_decay=0.0, adamw=False),
    _case("no_bias_correction", 1543, bias_correction=False, step=3),
    _case("late_step", 1543, step=123_457),
    _case("small_beta1", 1543, beta1=0.25),
    _case("zero_betas", 1543, beta1=0.0, beta2=0.0),
    _case("zero_eps", 1543, eps=0.0),
    _case("factor", 1543, factor=0.37),
    _case("factor_on_bfloat16", 1543, grad="bfloat16", factor=1.0 / 3.0, copy="bfloat16"),
    _case("wide_gradients", 4099, fill=Fill.WIDE),
    _case("special_gradients", 4099, fill=Fill.SPECIAL, grad="bfloat16"),
    _case("unaligned", 4099, layout=Layout.OFFSET, copy="bfloat16", grad="bfloat16"),
)
_ROUNDED = (
    _case("stochastic_bfloat16", 4099, param="bfloat16", state="bfloat16", copy="bfloat16", rounding_seed=1234),
    _case("stochastic_float16", 4099, param="float16", state="float16", rounding_seed=1234, rounding_offset=17),
    _case("stochastic_across_2_32", 2500, param="bfloat16", rounding_seed=0, rounding_offset=2**32 - 1100),
    _case("stochastic_small_float16", 4099, param="float16", state="float16", grad="float16", lr=1e-6, rounding_seed=9),
    _case("stochastic_float32_is_exact", 513, rounding_seed=5),
)

CASES = _SIZES + _DTYPES + _COPIES + _MODES + _ROUNDED
