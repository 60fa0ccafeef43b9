"""Config sections about number formats: fp16, bf16, torch_autocast, data_types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ds_core.config.facts import Auto, Facts
from ds_core.config.section import DTypeName, Refused, Section

if TYPE_CHECKING:
    from ds_core.config.config import Config

__all__ = ["Bf16Section", "DataTypesSection", "Fp16Section", "TorchAutocastSection"]


def _enabled_by_model(key: str, dtype: str, facts: Facts) -> Auto | None:
    if key != "enabled" or facts.model_dtype is None:
        return None
    found = facts.model_dtype.removeprefix("torch.")
    return Auto(found == dtype, f"the model is {found}")


class Fp16Section(Section):
    """float16 training with loss scaling."""

    enabled: bool = False
    """Train in float16."""
    auto_cast: bool = False
    """Cast floating-point inputs of the model to float16."""
    loss_scale: Annotated[float, Field(ge=0)] = 0.0
    """Fixed loss scale; 0 finds it while training."""
    initial_scale_power: Annotated[int, Field(ge=0, le=126)] = 16
    """A found loss scale starts at two to this power."""
    loss_scale_window: Annotated[int, Field(ge=1)] = 1000
    """Steps without overflow before the loss scale is doubled."""
    hysteresis: Annotated[int, Field(ge=1)] = 2
    """Overflows tolerated before the loss scale is halved."""
    consecutive_hysteresis: bool = False
    """Restore the tolerance at every step without overflow."""
    min_loss_scale: Annotated[float, Field(gt=0)] = 1.0
    """Lowest loss scale."""
    fp16_master_weights_and_grads: bool = False
    """Keep no float32 copy of weights and gradients; at any stage."""

    def auto(self, key: str, facts: Facts) -> Auto | None:
        """`enabled` follows the model's dtype."""
        return _enabled_by_model(key, "float16", facts)

    def check(self, config: Config) -> Iterable[str]:
        """fp16 excludes bf16; float16 masters need sharding; the scale starts above its floor."""
        if self.enabled and config.get("bf16.enabled"):
            yield (
                f"fp16.enabled ({config.origin('fp16.enabled')}) and bf16.enabled ({config.origin('bf16.enabled')}) are"
                f" both true; set one of them to false"
            )
        if self.loss_scale == 0 and self.min_loss_scale > 2.0**self.initial_scale_power:
            yield (
                f"fp16.min_loss_scale {self.min_loss_scale:g} is above the first loss scale, two to"
                f" fp16.initial_scale_power {self.initial_scale_power}; lower the former or raise the latter"
            )


class Bf16Section(Section):
    """bfloat16 training with float32 master weights."""

    enabled: bool = False
    """Train in bfloat16."""
    immediate_grad_update: bool = False
    """Add each gradient to the float32 sum as soon as it is produced."""
    check_grad_overflow: bool = True
    """Skip a step whose gradients are infinite or NaN."""
    bf16_master_weights_and_grads: bool = False
    """Keep no float32 copy of weights and gradients; at any stage."""
    bf16_optimizer_states: bool = False
    """Keep optimizer state in bfloat16; needs bf16_master_weights_and_grads."""
    stochastic_rounding: bool = False
    """Round weights up or down at random in proportion to the distance, instead of to nearest."""

    def auto(self, key: str, facts: Facts) -> Auto | None:
        """`enabled` follows the model's dtype."""
        return _enabled_by_model(key, "bfloat16", facts)

    def check(self, config: Config) -> Iterable[str]:
        """bfloat16 state needs bfloat16 masters, and both need sharding."""
        if self.bf16_optimizer_states and not self.bf16_master_weights_and_grads:
            yield (
                "bf16.bf16_optimizer_states true needs bf16.bf16_master_weights_and_grads true, got false; set both or"
                " neither"
            )


class TorchAutocastSection(Section):
    """torch.autocast around the model's forward pass."""

    enabled: bool = False
    """Run the forward pass under torch.autocast."""
    dtype: DTypeName = "bfloat16"
    """Type autocast computes in."""
    lower_precision_safe_modules: list[str] = Field(
        default_factory=lambda: ["torch.nn.Linear", "torch.nn.Conv1d", "torch.nn.Conv2d", "torch.nn.Conv3d"]
    )
    """Classes of modules whose gradients are reduced in `dtype`, by name, torch.nn's with or without the prefix."""

    def check(self, config: Config) -> Iterable[str]:
        """Autocast computes in a short type."""
        if self.enabled and self.dtype == "float32":
            yield "torch_autocast.dtype must be bfloat16 or float16 when torch_autocast.enabled is true, got float32"


class DataTypesSection(Section):
    """Types of gradient accumulation, parameters and buffers."""

    grad_accum_dtype: DTypeName | None = None
    """Type in which gradients of micro-batches are summed; the engine's choice when null."""
    param_dtype: DTypeName | None = None
    """Type parameters are converted to; the one fp16 or bf16 implies when null."""
    buffer_dtype: DTypeName | None = None
    """Type floating-point buffers are converted to; null: each keeps its own, but running statistics follow weights."""

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "keep_in_fp32_modules": "modules are converted all alike so far; take it out",
    }
