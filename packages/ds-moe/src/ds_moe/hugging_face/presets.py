"""Families of models by the name a configuration gives them. Data only."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

__all__ = ["PRESETS", "family_of"]

PRESETS: Mapping[str, tuple[str, ...]] = {
    "mixtral": ("mixtral",),
    "qwen2_moe": ("qwen2_moe",),
    "qwen3_moe": ("qwen3_moe", "qwen2_moe", "qwen3_vl_moe", "qwen3_omni_moe"),
    "qwen3_next": ("qwen3_next",),
    "qwen3_5_moe": ("qwen3_5_moe",),
    "deepseek_v2": ("deepseek_v2",),
    "deepseek_v3": ("deepseek_v3", "deepseek_v32"),
    "glm4_moe": ("glm4_moe", "glm4_moe_lite", "glm4v_moe"),
    "gpt_oss": ("gpt_oss",),
    "granitemoe": ("granitemoe", "granitemoeshared", "granitemoehybrid"),
    "minimax_m3": ("minimax_m3_vl",),
    "olmoe": ("olmoe", "flex_olmo"),
}
"""Families that ``expert_parallel.preset_model`` stands for. Families that are not here are found by their form."""

_HOME = "transformers.models."


def family_of(module: nn.Module, model: nn.Module) -> str:
    """The family a module's class belongs to: its folder in transformers, else ``model.config.model_type``, or ""."""
    home = type(module).__module__
    if home.startswith(_HOME):
        return home.removeprefix(_HOME).partition(".")[0]
    return str(getattr(getattr(model, "config", None), "model_type", ""))
