"""How to draw a call of each op: shapes, dtypes, layouts and scalars. A new op of the table needs a recipe here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from draw import DTYPES, Draw, Recipe

from ds_core.ops._gated_activation import KINDS
from ds_core.ops._quantize_cases import DEQUANTIZE_CASES, QUANTIZE_CASES
from ds_core.ops.case import Fill, TensorSpec

__all__ = ["RECIPES"]


def _rounding(draw: Draw) -> dict[str, object]:
    return {"rounding_seed": draw.pick(-1, 7), "rounding_offset": draw.pick(0, 5, 2**32 - 300)}


def _flat_update(draw: Draw, *states: str, **scalars: object) -> Recipe:
    """An optimizer's step over flat tensors."""
    numel, state = (draw.size(5000),), draw.pick(*DTYPES)
    tensors: dict[str, TensorSpec | None] = {
        "param": draw.flat(numel, draw.pick(*DTYPES)),
        "grad": draw.flat(numel, draw.pick(*DTYPES), draw.pick(Fill.NORMAL, Fill.SPECIAL)),
        **{name: draw.flat(numel, state, Fill.SQUARES) for name in states},
        "copy_out": draw.flat(numel, draw.pick(*DTYPES)) if draw.chance() else None,
        "grad_factor": TensorSpec((), "float32", scale=0.5) if draw.chance() else None,
    }
    return Recipe(tensors, {"lr": 1e-3, **scalars, **_rounding(draw)})


def _adam(draw: Draw) -> Recipe:
    step = draw.pick(1, 1000)
    return _flat_update(
        draw,
        "exp_avg",
        "exp_avg_sq",
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.1,
        step=step,
        adamw=draw.chance(),
    )


def _adam8bit(draw: Draw) -> Recipe:
    recipe, size = _adam(draw), draw.pick(256, 512, 1024, 2048, 4096)
    numel = _numel(recipe.tensors["param"])
    states = {name: draw.flat((numel,), "uint8", Fill.BYTES) for name in ("exp_avg", "exp_avg_sq")}
    scales = {f"{name}_scale": draw.flat((-(-numel // size),), "float32", Fill.SPECIAL) for name in states}
    return Recipe({**recipe.tensors, **states, **scales}, {**recipe.scalars, "block_size": size})


def _adagrad(draw: Draw) -> Recipe:
    return _flat_update(draw, "state_sum", eps=1e-8, weight_decay=draw.pick(0.0, 0.1), step=3, lr_decay=0.1)


def _lion(draw: Draw) -> Recipe:
    return _flat_update(draw, "exp_avg", beta1=0.9, beta2=0.99, weight_decay=draw.pick(0.0, 0.1))


def _sgd(draw: Draw) -> Recipe:
    if draw.chance(0.3):
        return _flat_update(draw, weight_decay=draw.pick(0.0, 0.1))
    first = draw.chance()
    return _flat_update(draw, "momentum_buffer", momentum=0.9, weight_decay=0.1, is_first=first, nesterov=draw.chance())


def _segments(draw: Draw, numel: int) -> list[int]:
    """Start and stop of runs of elements, some of them empty, with gaps between them."""
    return sorted(draw.random.randint(0, numel) for _ in range(2 * draw.size(6)))


def _lamb_scalars(draw: Draw) -> dict[str, object]:
    scalars = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1, "step": draw.pick(1, 1000)}
    return {**scalars, "eps_inside_sqrt": draw.chance(), **_rounding(draw)}


def _lamb_moments(draw: Draw) -> Recipe:
    recipe = _flat_update(draw, "exp_avg", "exp_avg_sq")
    tensors = {name: spec for name, spec in recipe.tensors.items() if name != "copy_out"}
    bounds = _segments(draw, _numel(recipe.tensors["param"]))
    return Recipe(tensors, {"bounds": bounds, **_lamb_scalars(draw)})


def _lamb_apply(draw: Draw) -> Recipe:
    recipe = _flat_update(draw, "exp_avg", "exp_avg_sq")
    bounds = _segments(draw, _numel(recipe.tensors["param"]))
    tensors = {name: spec for name, spec in recipe.tensors.items() if name not in ("grad", "grad_factor")}
    tensors["ratios"] = draw.flat((len(bounds) // 2,), "float32", Fill.SQUARES)
    return Recipe(tensors, {"bounds": bounds, "lr": 1e-3, **_lamb_scalars(draw)})


def _numel(spec: TensorSpec | None) -> int:
    return 0 if spec is None else spec.shape[0]


def _sum_of_squares(draw: Draw) -> Recipe:
    return Recipe({"x": draw.flat((draw.size(200_000),), draw.pick(*DTYPES))})


def _norm(draw: Draw, *, bias: bool, backward: bool, residual: bool) -> Recipe:
    columns = draw.size(9000, 1)
    shape, dtype, weight = (draw.rows(30_000, columns), columns), draw.pick(*DTYPES), draw.pick(*DTYPES)
    vector = draw.flat((columns,), weight)
    if backward:
        statistics = draw.flat(shape[:1], "float32", Fill.SQUARES)
        return Recipe(
            {
                "dy": draw.tensor(shape, dtype),
                **({"dtotal": draw.tensor(shape, dtype) if draw.chance() else None} if residual else {}),
                ("total" if residual else "x"): draw.tensor(shape, dtype),
                "weight": vector,
                **({"mean": statistics} if bias else {}),
                "rstd": statistics,
            }
        )
    return Recipe(
        {
            "x": draw.tensor(shape, dtype),
            **({"residual": draw.tensor(shape, dtype)} if residual else {}),
            "weight": vector,
            **({"bias": vector if draw.chance() else None} if bias else {}),
        },
        {"eps": 1e-5},
    )


def _rotary(draw: Draw) -> Recipe:
    half, known = draw.size(1100), draw.size(40, 1)
    dim = 2 * half + draw.size(70)
    leading = draw.pick((), (draw.size(3),), (2, draw.size(2)))
    shape = (*leading, draw.size(40), draw.size(3), dim)
    x = draw.tensor(shape, draw.pick(*DTYPES))
    shared = draw.chance()
    return Recipe(
        {
            "x": x,
            "cos": draw.flat((known, half), "float32"),
            "sin": draw.flat((known, half), "float32"),
            "positions": draw.index(shape[-3:-2] if shared else shape[:-2], known),
        },
        {"interleaved": draw.chance(), "inverse": draw.chance()},
    )


def _gated(draw: Draw, *, packed: bool, backward: bool) -> Recipe:
    columns, dtype = draw.size(3000), draw.pick(*DTYPES)
    rows = draw.rows(20_000, columns)
    scalars = {"kind": draw.pick(*KINDS)}
    dy = {"dy": draw.tensor((rows, columns), dtype)} if backward else {}
    if packed:
        return Recipe({**dy, "x": draw.tensor((rows, 2 * columns), dtype)}, scalars)
    return Recipe(
        {**dy, "gate": draw.tensor((rows, columns), dtype), "up": draw.tensor((rows, columns), dtype)}, scalars
    )


def _softmax(draw: Draw) -> Recipe:
    keys, dtype = draw.size(9000), draw.pick(*DTYPES)
    rows = draw.rows(30_000, keys)
    shape = draw.pick((rows, keys), (2, draw.size(6), keys), (2, draw.size(3), draw.size(5), keys))
    causal = draw.chance()
    mask = None
    if draw.chance():
        mask = draw.tensor(tuple(size if draw.chance(0.7) else 1 for size in shape), draw.pick(*DTYPES))
    lengths = draw.index(shape[:1], keys + 2) if draw.chance() and not (causal and len(shape) < 3) else None
    return Recipe({"x": draw.tensor(shape, dtype), "mask": mask, "lengths": lengths}, {"scale": 0.5, "causal": causal})


def _softmax_backward(draw: Draw) -> Recipe:
    keys, dtype = draw.size(9000), draw.pick(*DTYPES)
    shape = (draw.rows(30_000, keys), keys)
    return Recipe({"dy": draw.tensor(shape, dtype), "y": draw.tensor(shape, dtype)}, {"scale": 0.5})


def _cross_entropy(draw: Draw, *, backward: bool = False, in_place: bool = False) -> Recipe:
    classes, dtype = draw.size(9000, 1), draw.pick(*DTYPES)
    rows = draw.rows(30_000, classes)
    values = draw.flat(shape := (rows, classes), dtype) if in_place else draw.tensor((rows, classes), dtype)
    per_row = draw.flat(shape[:1], "float32") if in_place else draw.tensor((rows,), "float32")
    options = {"ignore_index": -100, "label_smoothing": draw.pick(0.0, 0.1), "z_loss": draw.pick(0.0, 1e-3)}
    return Recipe(
        {
            **({"dlosses": per_row} if backward else {}),
            "logits": values,
            "target": draw.index((rows,), classes, Fill.TARGETS),
            **({"lse": per_row} if backward else {}),
        },
        {**({"factor": 0.5} if in_place else {}), **options},
    )


def _rows_by_index(draw: Draw) -> tuple[tuple[int, ...], int, int, tuple[int, ...], str]:
    """(leading dimensions, rows, rows named, columns, dtype)."""
    columns = draw.pick((), (draw.size(3000),), (draw.size(5), draw.size(9)))
    batch = draw.pick((), (draw.size(3),))
    return batch, draw.size(40, 1), draw.size(60), columns, draw.pick(*DTYPES)


def _gather(draw: Draw) -> Recipe:
    batch, rows, taken, columns, dtype = _rows_by_index(draw)
    return Recipe({"x": draw.tensor((*batch, rows, *columns), dtype), "index": draw.index((*batch, taken), rows)})


def _replace(draw: Draw) -> Recipe:
    batch, rows, taken, columns, dtype = _rows_by_index(draw)
    taken = min(taken, rows)
    return Recipe(
        {
            "base": draw.tensor((*batch, rows, *columns), dtype),
            "x": draw.tensor((*batch, taken, *columns), dtype) if draw.chance(0.8) else None,
            "index": draw.index((*batch, taken), rows, Fill.RISING),
        }
    )


def _scatter(draw: Draw, *, backward: bool) -> Recipe:
    batch, rows, taken, columns, dtype = _rows_by_index(draw)
    weights = draw.tensor((*batch, taken), draw.pick(*DTYPES))
    return Recipe(
        {
            **({"dy": draw.tensor((*batch, rows, *columns), dtype)} if backward else {}),
            "x": draw.tensor((*batch, taken, *columns), dtype),
            "index": draw.index((*batch, taken), rows),
            "weights": weights if backward or draw.chance() else None,
        },
        {} if backward else {"rows": rows},
    )


def _combine(draw: Draw, *, backward: bool) -> Recipe:
    rows, tokens, slots, columns = draw.size(40, 1), draw.size(40), draw.size(8), draw.size(3000)
    dtype = draw.pick(*DTYPES)
    return Recipe(
        {
            **({"dy": draw.tensor((tokens, columns), dtype)} if backward else {}),
            "x": draw.tensor((rows, columns), dtype),
            "index": draw.index((tokens, slots), rows, Fill.HOLES),
            "weights": draw.tensor((tokens, slots), draw.pick(*DTYPES)),
        }
    )


def _quantize(draw: Draw) -> Recipe:
    scalars = dict(draw.pick(*QUANTIZE_CASES).scalars)  # a format and a scaling that go together
    scalars["group_size"] = 4 * draw.size(600, 1)
    return Recipe(
        {"x": draw.tensor((draw.size(30, 1), draw.size(300)), draw.pick(*DTYPES))}, {**scalars, **_rounding(draw)}
    )


def _dequantize(draw: Draw) -> Recipe:
    case = draw.pick(*DEQUANTIZE_CASES)  # sizes of packed codes depend on the format; the cases have the odd ones
    return Recipe(dict(case.tensors), {**case.scalars, "dtype": draw.pick(*DTYPES)})


def _linear(draw: Draw) -> Recipe:
    bits, inputs, outputs = draw.pick(4, 8), draw.size(1100, 1), draw.size(150)
    group_size = draw.pick(8, 32, 64, 128, 8 * draw.size(100, 1), inputs, 2000)
    group_size = group_size if group_size % 8 == 0 or group_size >= inputs else inputs
    blocks = -(-outputs // 16)
    groups = (-(-inputs // group_size), 16 * blocks)
    return Recipe(
        {
            "x": draw.tensor((draw.pick(draw.size(20), draw.size(300)), inputs), draw.pick(*DTYPES)),
            "codes": draw.flat((blocks, -(-inputs // 64) * 64 * 16 * bits // 8), "uint8", Fill.INTEGERS),
            "scales": draw.flat(groups, "float32"),
            "zeros": draw.flat(groups, "int8", Fill.INTEGERS) if draw.chance() else None,
            "bias": draw.flat((outputs,), draw.pick(*DTYPES)) if draw.chance() else None,
        },
        {"bits": bits, "group_size": group_size, "out_features": outputs},
    )


RECIPES: Mapping[str, Callable[[Draw], Recipe]] = {
    "adam_": _adam,
    "adam8bit_": _adam8bit,
    "adagrad_": _adagrad,
    "lamb_moments_": _lamb_moments,
    "lamb_apply_": _lamb_apply,
    "lion_": _lion,
    "sgd_": _sgd,
    "sum_of_squares": _sum_of_squares,
    "rms_norm_forward": lambda draw: _norm(draw, bias=False, backward=False, residual=False),
    "rms_norm_backward": lambda draw: _norm(draw, bias=False, backward=True, residual=False),
    "layer_norm_forward": lambda draw: _norm(draw, bias=True, backward=False, residual=False),
    "layer_norm_backward": lambda draw: _norm(draw, bias=True, backward=True, residual=False),
    "add_rms_norm_forward": lambda draw: _norm(draw, bias=False, backward=False, residual=True),
    "add_rms_norm_backward": lambda draw: _norm(draw, bias=False, backward=True, residual=True),
    "add_layer_norm_forward": lambda draw: _norm(draw, bias=True, backward=False, residual=True),
    "add_layer_norm_backward": lambda draw: _norm(draw, bias=True, backward=True, residual=True),
    "rotary": _rotary,
    "rotary_": _rotary,
    "gated_activation": lambda draw: _gated(draw, packed=False, backward=False),
    "gated_activation_backward": lambda draw: _gated(draw, packed=False, backward=True),
    "gated_activation_packed": lambda draw: _gated(draw, packed=True, backward=False),
    "gated_activation_packed_backward": lambda draw: _gated(draw, packed=True, backward=True),
    "softmax_forward": _softmax,
    "softmax_backward": _softmax_backward,
    "cross_entropy_forward": _cross_entropy,
    "cross_entropy_backward": lambda draw: _cross_entropy(draw, backward=True),
    "cross_entropy_": lambda draw: _cross_entropy(draw, in_place=True),
    "gather_rows": _gather,
    "replace_rows": _replace,
    "scatter_rows": lambda draw: _scatter(draw, backward=False),
    "scatter_rows_backward": lambda draw: _scatter(draw, backward=True),
    "combine_rows": lambda draw: _combine(draw, backward=False),
    "combine_rows_backward": lambda draw: _combine(draw, backward=True),
    "quantize": _quantize,
    "dequantize": _dequantize,
    "linear_weight_only": _linear,
    "linear_w8a8": _linear,
}
"""A recipe for every op, by name."""
