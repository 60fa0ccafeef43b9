"""What users call on an engine to save and load: checkpoints, weights, counters."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ds_core import checkpoint
from ds_core.part import Part, overrides

if TYPE_CHECKING:
    import torch

    from ds_core.config import Config
    from ds_core.engine_api import EngineApi

__all__ = ["CheckpointApi"]

COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")


class CheckpointApi:
    """The part of `ds_core.engine_api.EngineApi` that saves and loads; call its methods on all ranks."""

    module: torch.nn.Module
    config: Config
    parts: list[Part]
    _iterator: Iterator[Any] | None

    @property
    def _whole(self) -> EngineApi:
        return cast("EngineApi", self)

    def module_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor]:
        """The module's ``state_dict``, with its own names and unsharded shapes. Call on all ranks."""
        with self._whole.gathered(list(self.module.parameters())):
            state = dict(self.module.state_dict())
        if exclude_frozen_parameters:
            frozen = {name for name, p in self.module.named_parameters(remove_duplicate=False) if not p.requires_grad}
            state = {name: tensor for name, tensor in state.items() if name not in frozen}
        return state

    def load_module_state_dict(self, checkpoint: dict[str, torch.Tensor], strict: bool = True) -> None:
        """Loads weights into the module and everything that keeps a copy of them. Call on all ranks.

        ``engine.module.load_state_dict`` alone would leave fp32 master weights behind, and the next step would undo it.
        """
        with self._whole.gathered(list(self.module.parameters())):
            self.module.load_state_dict(checkpoint, strict=strict)
        for follow in overrides(self.parts, "weights_replaced"):
            follow()

    def counters(self) -> dict[str, int]:
        """Counters a checkpoint keeps."""
        return {name: getattr(self, name) for name in COUNTERS}

    def restore_counters(self, counters: dict[str, int]) -> None:
        """Takes counters back; the next step continues the count."""
        for name in COUNTERS:
            setattr(self, name, int(counters[name]))
        self._iterator = None

    def save_checkpoint(
        self,
        save_dir: str | Path,
        tag: str | None = None,
        client_state: dict[str, Any] | None = None,
        save_latest: bool = True,
        exclude_frozen_parameters: bool = False,
    ) -> bool:
        """Writes a checkpoint; call on all ranks. See `ds_core.checkpoint.save`."""
        return checkpoint.save(self._whole, save_dir, tag, client_state or {}, save_latest, exclude_frozen_parameters)

    def load_checkpoint(
        self,
        load_dir: str | Path,
        tag: str | None = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Loads what any number of ranks saved; call on all ranks. See `ds_core.checkpoint.load`."""
        kinds = {"module", "optimizer", "schedule", "engine"}
        if load_module_only:
            kinds = {"module"}
        if not load_optimizer_states:
            kinds.discard("optimizer")
        if not load_lr_scheduler_states:
            kinds.discard("schedule")
        return checkpoint.load(self._whole, load_dir, tag, kinds=kinds, strict=load_module_strict)

    def save_16bit_model(self, save_dir: str | Path, save_filename: str = "model.safetensors") -> bool:
        """Writes the full weights as one safetensors file from the first rank; call on all ranks.

        False, and nothing is written, at stage 3 with ``gather_16bit_weights_on_model_save`` false.
        """
        gathers = self.config.get("zero_optimization.gather_16bit_weights_on_model_save", True)
        if self._whole.zero_optimization_stage() == 3 and not gathers:
            return False
        return checkpoint.save_weights(self._whole, Path(save_dir) / save_filename)
