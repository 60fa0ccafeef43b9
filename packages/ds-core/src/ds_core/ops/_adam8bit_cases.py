"""Conformance cases of adam8bit_."""

from __future__ import annotations

from typing import Any

from ds_core.ops.case import Fill, Layout, OpCase, TensorSpec

__all__ = ["CASES"]

_SCALARS: dict[str, Any] = {
    "lr": 1e-3,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "weight_decay": 0.01,
    "step": 7,
}


def _case(name: str, numel: int, **options: Any) -> OpCase:
    block_size = options.setdefault("block_size", 2048)
    param, grad = options.pop("param", "float32"), options.pop("grad", "float32")
    copy, factor = options.pop("copy", None), options.pop("factor", None)
    fill, layout = options.pop("fill", Fill.NORMAL), options.pop("layout", Layout.CONTIGUOUS)
    codes = options.pop("codes", Fill.BYTES)
    blocks = -(-numel // block_size)

    def spec(dtype: str, filled: Fill = Fill.NORMAL, scale: float = 1.0) -> TensorSpec:
        return TensorSpec((numel,), dtype, filled, scale, layout)

    scales = Fill.ZEROS if codes is Fill.ZEROS else Fill.SQUARES
    return OpCase(
        name,
        tensors={
            "param": spec(param),
            "grad": spec(grad, fill, 0.1),
            "exp_avg": spec("uint8", codes),
            "exp_avg_sq": spec("uint8", codes),
            "exp_avg_scale": TensorSpec((blocks,), "float32", scales, 0.3),
            "exp_avg_sq_scale": TensorSpec((blocks,), "float32", scales, 0.1),
            "copy_out": None if copy is None else spec(copy, Fill.ZEROS),
            "grad_factor": None if factor is None else TensorSpec((), "float32", Fill.NORMAL, factor),
        },
        scalars={**_SCALARS, **options},
    )


CASES = (
    *(_case(f"numel_{n}", n) for n in (0, 1, 17, 1023, 2048, 2049, 6000, 70_001, 600_000)),
    *(_case(f"blocks_of_{size}", 9001, block_size=size) for size in (256, 512, 1024, 4096)),
    *(
        _case(f"param_{p}_grad_{g}_copy_{c}", 5000, param=p, grad=g, copy=c)
        for p, g, c in (
            ("bfloat16", "bfloat16", "float16"),
            ("float16", "float32", "float32"),
            ("float32", "float16", "bfloat16"),
        )
    ),
    _case("from_nothing", 5000, codes=Fill.ZEROS, step=1),
    _case("stays_nothing", 5000, codes=Fill.ZEROS, fill=Fill.ZEROS, weight_decay=0.0),
    _case("coupled_decay", 5000, adamw=False),
    _case("no_bias_correction", 5000, bias_correction=False),
    _case("small_beta1", 5000, beta1=0.25),
    _case("factor", 5000, factor=0.37, grad="bfloat16"),
    _case("wide_gradients", 20_000, fill=Fill.WIDE, beta1=0.0, beta2=0.0),
    _case("special_gradients", 20_000, fill=Fill.SPECIAL),
    _case("tiny_gradients", 5000, codes=Fill.ZEROS, factor=1e-40, weight_decay=0.0),
    _case("unaligned", 5000, layout=Layout.OFFSET, copy="bfloat16", grad="bfloat16"),
    _case("stochastic", 5000, param="bfloat16", copy="bfloat16", rounding_seed=3, rounding_offset=11),
)
