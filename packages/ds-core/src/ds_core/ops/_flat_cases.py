"""Conformance cases that every elementwise optimizer has: sizes, dtypes, copies, layouts, rounding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec

__all__ = ["CaseMaker"]

_NAMES = ("float32", "bfloat16", "float16")


class CaseMaker:
    """Makes cases of one op.

    Args:
        states: each state's name, fill and scale.
        scalars: hyperparameters that a case may replace.
    """

    def __init__(self, states: Mapping[str, tuple[Fill, float]], scalars: Mapping[str, object]) -> None:
        self.states: Mapping[str, tuple[Fill, float]] = states
        self.scalars: Mapping[str, object] = scalars

    def case(
        self,
        name: str,
        numel: int = 1543,
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
        """One call."""

        def spec(dtype: str, filled: Fill = Fill.NORMAL, scale: float = 1.0) -> TensorSpec:
            return TensorSpec((numel,), dtype, filled, scale, layout)

        return OpCase(
            name,
            tensors={
                "param": spec(param),
                "grad": spec(grad, fill, 0.1),
                **{key: spec(state, kind, scale) for key, (kind, scale) in self.states.items()},
                "copy_out": None if copy is None else spec(copy, Fill.ZEROS),
                "grad_factor": None if factor is None else TensorSpec((), "float32", Fill.NORMAL, factor),
            },
            scalars={**self.scalars, **scalars},
            exactness=Exactness(ulps=0),
        )

    def common(self) -> tuple[OpCase, ...]:
        """What every optimizer must get right."""
        sizes = [self.case(f"numel_{n}", n) for n in (0, 1, 3, 15, 16, 17, 1023, 1024, 1025, 4099, 70_001)]
        dtypes = [
            self.case(f"param_{p}_grad_{g}_state_{s}", param=p, grad=g, state=s)
            for p in _NAMES
            for g in _NAMES
            for s in _NAMES
        ]
        copies = [self.case(f"copy_{p}_to_{c}", param=p, copy=c) for p in _NAMES for c in _NAMES]
        low: dict[str, Any] = {"param": "bfloat16", "state": "bfloat16"}
        half: dict[str, Any] = {"param": "float16", "state": "float16"}
        return (
            *sizes,
            *dtypes,
            *copies,
            self.case("factor", factor=0.37),
            self.case("factor_on_bfloat16", grad="bfloat16", factor=1.0 / 3.0, copy="bfloat16"),
            self.case("wide_gradients", 4099, fill=Fill.WIDE),
            self.case("special_gradients", 4099, fill=Fill.SPECIAL, grad="bfloat16"),
            self.case("unaligned", 4099, layout=Layout.OFFSET, copy="bfloat16", grad="bfloat16"),
            self.case("stochastic_bfloat16", 4099, copy="bfloat16", rounding_seed=1234, **low),
            self.case("stochastic_float16", 4099, rounding_seed=1234, rounding_offset=17, **half),
            self.case("stochastic_across_2_32", 2500, param="bfloat16", rounding_seed=0, rounding_offset=2**32 - 1100),
            self.case("stochastic_small_float16", 4099, grad="float16", lr=1e-6, rounding_seed=9, **half),
            self.case("stochastic_float32_is_exact", 513, rounding_seed=5),
        )
