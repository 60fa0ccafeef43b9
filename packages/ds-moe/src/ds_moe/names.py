"""What programs find on the engine of a model with experts: its layers, their gates, how many experts each has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ds_core.part import Part
from ds_moe.mixture import Mixture

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_moe.gate import TopKGate

__all__ = ["MoeNames"]


class MoeNames(Part):
    """Brings ``has_moe_layers``, ``moe_layers``, ``gate_modules`` and ``num_experts``; of this rank's stages."""

    name = "moe_names"

    def __init__(self) -> None:
        self._build: Build | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the build, whose module others may still change."""
        self._build = build

    def engine_values(self) -> Mapping[str, Callable[[], Any]]:
        """See each."""
        return {
            "has_moe_layers": self.has_moe_layers,
            "moe_layers": self.moe_layers,
            "gate_modules": self.gate_modules,
            "num_experts": self.num_experts,
        }

    def has_moe_layers(self) -> bool:
        """Whether there is a layer with experts."""
        return bool(self.moe_layers())

    def moe_layers(self) -> list[Mixture]:
        """The layers with experts, in the order of the model."""
        assert self._build is not None
        module: torch.nn.Module = self._build.module
        return [each for each in module.modules() if isinstance(each, Mixture)]

    def gate_modules(self) -> list[TopKGate]:
        """The gate of each."""
        return [layer.gate for layer in self.moe_layers()]

    def num_experts(self) -> list[int]:
        """Experts of each over all ranks."""
        return [layer.num_experts for layer in self.moe_layers()]
