"""Tiny mixture-of-experts models of Hugging Face, a family each, with random weights that are the same everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VOCABULARY, TOKENS = 64, 12
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_QWEN = {**_SMALL, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 2}
_SHARED = {**_QWEN, "shared_expert_intermediate_size": 16}
_LINEAR = {
    **_SHARED,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_GLM = {
    **_SMALL,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_DEEPSEEK = {
    **_GLM,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mixtral": ("MixtralConfig", {**_SMALL, "num_local_experts": 4}),
    "qwen2_moe": ("Qwen2MoeConfig", _SHARED),
    "qwen3_moe": ("Qwen3MoeConfig", {**_QWEN, "head_dim": 8, "num_experts_per_tok": 4}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", _LINEAR),
    "deepseek_v2": ("DeepseekV2Config", {**_DEEPSEEK, "topk_method": "group_limited_greedy"}),
    "deepseek_v3": ("DeepseekV3Config", _DEEPSEEK),
    "glm4_moe": ("Glm4MoeConfig", {**_GLM, "head_dim": 8}),
    "olmoe": ("OlmoeConfig", _QWEN),
    "gpt_oss": ("GptOssConfig", {**_SMALL, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8}),
    "granitemoe": ("GraniteMoeConfig", {**_SMALL, "num_local_experts": 4}),
    "nemotron_h": ("NemotronHConfig", {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 1}),
}
"""Name of the class of the configuration and its arguments."""


def make(family: str, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A model of `family`, every parameter with a spread that lets each expert matter."""
    kind, arguments = FAMILIES[family]
    config = getattr(transformers, kind)(**{**arguments, **changes})
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 or name.endswith(("gate_up_proj_bias", "down_proj_bias")):
                parameter.normal_(std=0.1, generator=generator)
    return model.to(dtype)  # type: ignore[no-any-return]


def tokens(rows: int, step: int = 0) -> torch.Tensor:
    """[rows, TOKENS] of a batch that is the same everywhere."""
    return torch.randint(2, VOCABULARY, (rows, TOKENS), generator=torch.Generator().manual_seed(100 + step))
