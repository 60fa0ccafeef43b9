"""Conformance cases of top_k_gate and its backward."""

from __future__ import annotations

from ds_core.ops.case import Exactness, Fill, Layout, OpCase, TensorSpec

__all__ = ["BACKWARD_CASES", "FORWARD_CASES"]

_NEAR = Exactness(ulps=16, relative=1e-6)
"""Exponentials and sums differ by roundings; experts are whole numbers and must be the same."""

_SHAPES = (
    # name, tokens, experts, k, score, renormalize, bias, groups, groups_kept, group_score, dtype, layout
    ("switch", 40, 8, 1, "softmax", False, False, 1, 1, "max", "float32", Layout.CONTIGUOUS),
    ("mixtral", 33, 8, 2, "softmax", True, False, 1, 1, "max", "bfloat16", Layout.CONTIGUOUS),
    ("qwen", 20, 60, 4, "softmax", False, False, 1, 1, "max", "float16", Layout.CONTIGUOUS),
    ("deepseek_v2", 17, 160, 6, "softmax", False, False, 8, 3, "max", "bfloat16", Layout.CONTIGUOUS),
    ("deepseek_v3", 9, 256, 8, "sigmoid", True, True, 8, 4, "top2", "float32", Layout.CONTIGUOUS),
    ("ties", 64, 16, 5, "sigmoid", True, True, 4, 2, "top2", "bfloat16", Layout.CONTIGUOUS),
    ("biased", 21, 32, 3, "softmax", True, True, 1, 1, "max", "float32", Layout.CONTIGUOUS),
    ("biased_groups", 21, 24, 3, "sigmoid", False, True, 6, 2, "max", "float16", Layout.CONTIGUOUS),
    ("sums_of_groups", 21, 24, 3, "softmax", False, False, 4, 1, "top2", "float32", Layout.CONTIGUOUS),
    ("all_experts", 7, 5, 5, "softmax", True, False, 1, 1, "max", "float32", Layout.CONTIGUOUS),
    ("one_expert", 7, 1, 1, "sigmoid", False, False, 1, 1, "max", "float32", Layout.CONTIGUOUS),
    ("many_experts", 3, 700, 9, "softmax", True, True, 7, 4, "top2", "float32", Layout.CONTIGUOUS),
    ("no_tokens", 0, 8, 2, "softmax", True, False, 1, 1, "max", "float32", Layout.CONTIGUOUS),
    ("transposed", 12, 10, 2, "softmax", True, False, 1, 1, "max", "float32", Layout.TRANSPOSED),
    ("strided", 12, 10, 2, "sigmoid", False, False, 2, 1, "max", "bfloat16", Layout.STRIDED),
    ("unaligned", 11, 9, 2, "softmax", False, False, 3, 2, "max", "float16", Layout.OFFSET),
)
_VALUES = (("special", Fill.SPECIAL, 1.0), ("zeros", Fill.ZEROS, 1.0), ("far_apart", Fill.NORMAL, 100.0))

FORWARD_CASES = (
    *(
        OpCase(
            name,
            {
                "logits": TensorSpec((tokens, experts), dtype, layout=layout),
                "bias": TensorSpec((experts,)) if bias else None,
            },
            {
                "k": k,
                "score": score,
                "renormalize": renormalize,
                "groups": groups,
                "groups_kept": groups_kept,
                "group_score": group_score,
                "scale": 2.5 if renormalize else 1.0,
            },
            exactness=_NEAR,
            levels=_NEAR,
        )
        for name, tokens, experts, k, score, renormalize, bias, groups, groups_kept, group_score, dtype, layout in (
            _SHAPES
        )
    ),
    *(
        OpCase(
            f"{name}_{score}_{group_score}",
            {"logits": TensorSpec((40, 24), fill=fill, scale=scale), "bias": None},
            {
                "k": 4,
                "score": score,
                "renormalize": True,
                "groups": 4,
                "groups_kept": 2,
                "group_score": group_score,
                "scale": 1.0,
            },
            exactness=_NEAR,
            levels=_NEAR,
        )
        for name, fill, scale in _VALUES
        for score in ("softmax", "sigmoid")
        for group_score in ("max", "top2")
        if (name, group_score) != ("far_apart", "top2")  # sums that are equal but for a rounding
    ),
)

BACKWARD_CASES = tuple(
    OpCase(
        f"{name}_{given}",
        {
            "scores": TensorSpec((tokens, experts), fill=Fill.SQUARES, scale=0.4, layout=layout),
            "experts": TensorSpec((tokens, k), "int64", Fill.RISING, experts),
            "dweights": TensorSpec((tokens, k), layout=layout) if given != "of_scores" else None,
            "dscores": TensorSpec((tokens, experts)) if given != "of_weights" else None,
        },
        {"score": score, "renormalize": renormalize, "scale": 2.5 if renormalize else 1.0, "dtype": dtype},
        exactness=Exactness(ulps=16, relative=2e-6),
        levels=Exactness(ulps=16, relative=2e-6),
    )
    for name, tokens, experts, k, score, renormalize, _, _, _, _, dtype, layout in _SHAPES
    for given in ("of_both", "of_weights", "of_scores")
    if given == "of_both" or name in ("mixtral", "deepseek_v3", "no_tokens")
)
