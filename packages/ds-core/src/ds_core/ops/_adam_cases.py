"""Conformance cases of adam_."""

from __future__ import annotations

from ds_core.ops._flat_cases import CaseMaker
from ds_core.ops.case import Fill

__all__ = ["CASES"]

_ADAM = CaseMaker(
    {"exp_avg": (Fill.NORMAL, 0.05), "exp_avg_sq": (Fill.SQUARES, 0.1)},
    {"lr": 1e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "step": 1},
)

CASES = (
    *_ADAM.common(),
    _ADAM.case("coupled_decay", adamw=False),
    _ADAM.case("no_decay", weight_decay=0.0),
    _ADAM.case("no_decay_coupled", weight_decay=0.0, adamw=False),
    _ADAM.case("no_bias_correction", bias_correction=False, step=3),
    _ADAM.case("seventh_step", param="bfloat16", state="float16", step=7),
    _ADAM.case("late_step", step=123_457),
    _ADAM.case("small_beta1", beta1=0.25),
    _ADAM.case("zero_betas", beta1=0.0, beta2=0.0),
    _ADAM.case("zero_eps", eps=0.0),
)
