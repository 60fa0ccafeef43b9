"""The ``expert_parallel`` section: experts of Hugging Face models over ranks; and what is refused of it, with why."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ds_core.config import Section
from ds_core.config.section import Refused

if TYPE_CHECKING:
    from ds_core.config import Config

__all__ = ["PATTERN_KEYS", "ROUTING_KEYS", "ExpertParallel", "PresetName"]

Positive = Annotated[int, Field(ge=1)]
PresetName = Literal[
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
    "qwen3_5_moe",
    "deepseek_v2",
    "deepseek_v3",
    "glm4_moe",
    "gpt_oss",
    "granitemoe",
    "minimax_m3",
    "olmoe",
]

_DEEP_EP = "rows travel by all_to_all of the process group; DeepEP is not in this version of ds-moe; take it out"
_NO_EFFECT = "it would change nothing here"

PATTERN_KEYS = ("moe_layer_pattern", "expert_pattern", "router_pattern")
"""Keys that are regular expressions."""

ROUTING_KEYS = (
    "top_k",
    "top_k_attr",
    "score_func",
    "score_apply",
    "route_norm",
    "route_scale",
    "routed_scaling_factor",
    "num_expert_groups",
    "num_limited_groups",
    "has_shared_experts",
    "shared_experts_pattern",
    "shared_experts_gate_pattern",
    "expert_w1",
    "expert_w2",
    "expert_w3",
)
"""Keys that describe a block with a list of experts; a block whose experts are stacked tensors decides by itself."""


class ExpertParallel(Section):
    """Mixture-of-experts blocks of Hugging Face models, their experts divided over ranks."""

    enabled: bool = False
    """Find the blocks and run their experts as one grouped product, on the ranks that hold them."""
    autoep_size: Positive = 1
    """Ranks that share the experts of a layer; divides the number of experts and the number of ranks."""
    preset_model: PresetName | None = None
    """Convert blocks of this family only; null: whatever has the form of experts."""
    use_grouped_mm: bool = True
    """One grouped product for all experts of a rank; false: a product for each expert."""
    use_data_before_expert_parallelism: bool = False
    """Neighbouring ranks work on different data with the same experts; false: they share the experts of a layer."""
    load_balance_coeff: Annotated[float, Field(gt=0)] | None = None
    """After every step, move the router's correction bias by this much towards even loads; null leaves it alone."""

    moe_layer_pattern: str | None = None
    """Regular expression for names of blocks to convert, searched for in them; also takes blocks with a list of
    experts, which the keys below describe."""
    expert_pattern: str = "experts"
    """Regular expression for the name that the experts have in their block."""
    router_pattern: str = "gate|router"
    """Regular expression for the name that the router has in its block."""
    num_experts_attr: str | None = None
    """Attribute of the model's ``config`` with the number of experts; what is found must agree."""

    expert_w1: str | None = None
    """In a list of experts: name of the linear layer whose result is activated."""
    expert_w2: str | None = None
    """In a list of experts: name of the linear layer that comes last."""
    expert_w3: str | None = None
    """In a list of experts: name of the linear layer that is multiplied with the activated one."""
    top_k: Positive | None = None
    """Experts of a token, for a list of experts whose router gives logits."""
    top_k_attr: str = "num_experts_per_tok"
    """Attribute of the model's ``config``, or of the block, with that number."""
    score_func: Literal["softmax", "sigmoid"] = "softmax"
    """What makes scores of logits."""
    score_apply: Literal["post", "pre"] = "post"
    """Whether scores multiply what comes out of the experts or what goes in."""
    route_norm: bool = True
    """Divide the scores of a token's experts by their sum."""
    route_scale: Annotated[float, Field(gt=0)] = 1.0
    """Scores are multiplied by this at last."""
    num_expert_groups: Positive | None = None
    """Groups of experts, of which a token's experts may come from `num_limited_groups` only."""
    num_limited_groups: Positive | None = None
    """Groups that a token's experts may come from: those with the best two scores together."""
    has_shared_experts: bool | None = None
    """Whether the block adds experts that every token passes; null: when one is found."""
    shared_experts_pattern: str = "shared_experts?"
    """Regular expression for the name that these have in their block."""
    shared_experts_gate_pattern: str = "shared_experts?_gate"
    """Regular expression for the name of the layer whose sigmoid multiplies what they give."""

    aliases: ClassVar[Mapping[str, str]] = {"routed_scaling_factor": "route_scale"}
    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "expert_tensor_parallel_size": Refused("an expert is never cut over ranks here; raise autoep_size", (1,)),
        "validate_folding_routing": Refused("experts are not folded with tensor parallelism; take it out"),
        "disable_triton_grouped_mm": Refused(
            f"{_NO_EFFECT}: a grouped product takes the installed accelerator's kernel; take it out, or set "
            "use_grouped_mm to false",
        ),
        "combine_impl": Refused(
            "rows are always weighted and summed in float32, in the order of a token's choices; take it out",
            ("weighted_sum",),
        ),
        "comm_backend": Refused(_DEEP_EP, ("comm",)),
        "comm_num_sm": Refused(_DEEP_EP),
        "comm_qp_margin": Refused(_DEEP_EP),
        "comm_max_tokens_per_rank": Refused(_DEEP_EP),
        "async_split_plan": Refused(f"{_NO_EFFECT}: ranks exchange one small table of counts per layer; take it out"),
        "row_weighting_impl": Refused("it chooses a kernel of DeepEP's; take it out", ("eager",)),
        "gate_up_impl": Refused("gate and up are one product where the model keeps them in one tensor; take it out"),
        "fused_weighted_sum": Refused("weights are always applied while rows are summed; take it out"),
        "expert_activation": Refused("experts keep the activation of the model; take it out"),
    }

    def check(self, config: Config) -> Iterable[str]:
        """Patterns that are no regular expressions, keys that need others, and keys of a section that is off."""
        for key in (*PATTERN_KEYS, "shared_experts_pattern", "shared_experts_gate_pattern"):
            try:
                re.compile(getattr(self, key) or "")
            except re.error as error:
                yield f"expert_parallel.{key} must be a regular expression, got {getattr(self, key)!r}: {error}"
        if (self.num_expert_groups is None) != (self.num_limited_groups is None):
            yield (
                "expert_parallel.num_expert_groups and expert_parallel.num_limited_groups go together, got "
                f"{self.num_expert_groups} and {self.num_limited_groups}; set both or neither"
            )
        elif self.num_expert_groups is not None and (self.num_limited_groups or 0) > self.num_expert_groups:
            yield (
                f"expert_parallel.num_limited_groups must be at most num_expert_groups ({self.num_expert_groups}), got "
                f"{self.num_limited_groups}"
            )
        if (self.expert_w1 is None) != (self.expert_w2 is None) or (self.expert_w3 and not self.expert_w1):
            yield (
                "expert_parallel.expert_w1 and expert_parallel.expert_w2 go together, and expert_w3 needs both, got "
                f"{self.expert_w1!r}, {self.expert_w2!r} and {self.expert_w3!r}; name the linear layers of an expert"
            )
        if not self.enabled and self.autoep_size > 1:
            yield (
                f"expert_parallel.autoep_size is {self.autoep_size} but expert_parallel.enabled is false; enable it or "
                "take autoep_size out"
            )

    def changed(self, keys: Iterable[str]) -> list[str]:
        """Which of `keys` have another value than their default."""
        named = dict.fromkeys(self.aliases.get(key, key) for key in keys)
        return [name for name in named if getattr(self, name) != type(self).model_fields[name].default]
