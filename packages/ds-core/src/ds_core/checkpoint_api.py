"""What users call on an engine to save and load: checkpoints, weights, counters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from ds_core import checkpoint
from ds_core.checkpoint.together import together
from ds_core.checkpoint.weights.divided import cut, joined
from ds_core.errors import EngineError
from ds_core.part import Part, overrides
from ds_core.parts.preemption import OnSignal, Preemption
from ds_core.parts.saving import Saving
from ds_core.signals import parse_signals

if TYPE_CHECKING:
    import torch

    from ds_core.checkpoint.familiar_engine import CheckpointEngine
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

    def module_state_dict(
        self,
        destination: dict[str, Any] | None = None,
        prefix: str = "",
        keep_vars: bool = False,
        exclude_frozen_parameters: bool = False,
    ) -> dict[str, Any]:
        """The module's ``state_dict``, with its own names and unsharded shapes, on every rank. Call on all ranks.

        Where ranks divide the model into stages it has this rank's; slices and experts of all ranks are put together.

        Args:
            destination: filled and returned, where given.
            prefix: goes before every name.
            keep_vars: parameters themselves rather than their values.
            exclude_frozen_parameters: leave out parameters that are not trained.
        """
        with self._whole.gathered(list(self.module.parameters())):
            made = self.module.state_dict(prefix=prefix, keep_vars=keep_vars)
            for name, parameter in self.module.named_parameters(prefix=prefix.rstrip("."), remove_duplicate=False):
                if not keep_vars and parameter in self._whole.holdings:
                    made[name] = joined(parameter.data, self._whole.holdings[parameter])
        frozen = set()
        if exclude_frozen_parameters:
            named = self.module.named_parameters(prefix=prefix.rstrip("."), remove_duplicate=False)
            frozen = {name for name, parameter in named if not parameter.requires_grad}
        state = {} if destination is None else destination
        state.update((name, tensor) for name, tensor in made.items() if name not in frozen)
        return state

    def load_module_state_dict(
        self,
        checkpoint: dict[str, torch.Tensor],
        strict: bool = True,
        custom_load_fn: checkpoint.CustomLoad | None = None,
        fetch_z3_params: bool = True,
    ) -> None:
        """Loads weights into the module and everything that keeps a copy of them. Call on all ranks.

        ``engine.module.load_state_dict`` alone would leave fp32 master weights behind, and the next step would undo it.

        Args:
            checkpoint: full values by the module's names.
            strict: names must be the module's, all of them.
            custom_load_fn: loads instead, called as ``custom_load_fn(src=checkpoint, dst=module)``; the same on all
                ranks.
            fetch_z3_params: accepted; sharded parameters are always made whole for it.
        """
        with self._whole.gathered(list(self.module.parameters())):
            named = dict(self.module.named_parameters(remove_duplicate=False))
            mine = {
                name: cut(value, self._whole.holdings.get(named[name]), named[name].shape) if name in named else value
                for name, value in checkpoint.items()
            }
            if custom_load_fn is not None:
                custom_load_fn(src=mine, dst=self.module)
            else:
                self.module.load_state_dict(mine, strict=strict)
        for follow in overrides(self.parts, "weights_replaced"):
            follow()

    @staticmethod
    def load_moe_state_dict(*args: Any, **kwargs: Any) -> NoReturn:
        """Refused: experts are in the same checkpoint as everything else.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "load_moe_state_dict reads files of one expert each; engine.load_checkpoint reads experts with the rest, "
            "for any number of ranks"
        )

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
        """Writes a checkpoint; call on all ranks. See `ds_core.checkpoint.saving.saver.Saver.save`.

        With ``checkpoint.asynchronous`` it returns when the state is copied; `wait_for_checkpoint` returns when it is
        on disk. A write that failed is told by the next `step`, save or load.
        """
        return self._saver.save(
            self._whole,
            save_dir,
            tag,
            client_state or {},
            save_latest=save_latest,
            exclude_frozen=exclude_frozen_parameters,
        )

    def wait_for_checkpoint(self) -> None:
        """Returns when the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written; names the file, the rank and the reason.
        """
        self._saver.wait()

    @property
    def checkpoint_engine(self) -> CheckpointEngine:
        """Whether writes go on in the background, and waiting for them, under DeepSpeed's names."""
        from ds_core.checkpoint.familiar_engine import CheckpointEngine

        return CheckpointEngine(self._whole)

    @property
    def _saver(self) -> checkpoint.Saver:
        return next(part for part in self.parts if isinstance(part, Saving)).saver

    def load_checkpoint(
        self,
        load_dir: str | Path,
        tag: str | None = None,
        load_module_strict: bool = True,
        load_optimizer_states: bool = True,
        load_lr_scheduler_states: bool = True,
        load_module_only: bool = False,
        custom_load_fn: checkpoint.CustomLoad | None = None,
        *,
        rename: checkpoint.Rename | None = None,
        missing: str | Iterable[str] | None = None,
        unexpected: str | Iterable[str] | None = None,
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Loads what any number of ranks saved, or refuses and changes nothing; call on all ranks.

        Args:
            load_dir: where checkpoints were saved.
            tag: default the one that ``latest`` names.
            load_module_strict: false: ``missing="keep"`` and ``unexpected="ignore"`` where those are not given.
            load_optimizer_states: masters, moments, step counts, hyperparameters.
            load_lr_scheduler_states: the schedule's.
            load_module_only: weights and buffers alone, no counters either.
            custom_load_fn: loads the weights instead, called as ``custom_load_fn(src=state_dict, dst=module)`` with
                full tensors on both sides; it must do the same on all ranks.
            rename: names of the module to names in the checkpoint, by a mapping or a callable; ``*`` stands for any
                characters, the same ones on both sides. Holds for weights and optimizer states.
            missing: which parameters and buffers the checkpoint may lack: ``"error"`` for none, ``"keep"`` for any,
                ``"frozen"`` for those that are not trained, or names and patterns with ``*``. They stay as they are.
            unexpected: which the checkpoint may have and the model not: ``"error"`` for none, ``"ignore"`` for any, or
                names and patterns of the checkpoint's.

        Returns:
            ``(path, client_state)``, or ``(None, None)`` when `tag` is None and nothing was ever saved there.

        Raises:
            CheckpointError: on every rank; the checkpoint is absent, damaged, or of another model or optimizer.
        """
        kinds = {"module", "optimizer", "schedule", "engine"}
        if load_module_only:
            kinds = {"module"}
        if not load_optimizer_states:
            kinds.discard("optimizer")
        if not load_lr_scheduler_states:
            kinds.discard("schedule")
        together("write the checkpoint before", load_dir, self.wait_for_checkpoint)
        return checkpoint.load(
            self._whole,
            load_dir,
            tag,
            kinds=kinds,
            policy=checkpoint.make_policy(rename, missing, unexpected, strict=load_module_strict),
            custom_load_fn=custom_load_fn,
            verify=self.config["checkpoint"].verify,
        )

    def save_on_signal(
        self,
        folder: str | Path | None,
        stop: Iterable[str | int] = ("SIGTERM",),
        go_on: Iterable[str | int] = ("SIGUSR1",),
        client_state: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        """Saves when a signal reaches any rank, on all ranks after the same step; takes the place of ``on_signal``.

        Args:
            folder: the ``save_dir`` of the checkpoints; None gives the signals back.
            stop: signals after which ``step`` raises `Preempted`.
            go_on: signals after which training goes on.
            client_state: called on all ranks when it is time, for what `load_checkpoint` hands back.

        Raises:
            EngineError: called outside the main thread, where Python cannot handle signals.
            ConfigError: an unknown signal, or one in both lists.
            CheckpointError: the folder cannot be made.
        """
        part = next(part for part in self.parts if isinstance(part, Preemption))
        if folder is None:
            part.watch(None)
            return
        part.watch(OnSignal(Path(folder), *parse_signals(stop, go_on), client_state))

    def save_16bit_model(
        self,
        save_dir: str | Path,
        save_filename: str = "model.safetensors",
        exclude_frozen_parameters: bool = False,
    ) -> bool:
        """Writes the full weights as one safetensors file from the first rank; call on all ranks.

        One unit is gathered at a time; see `ds_core.checkpoint.weights.engine_weights`. False, and nothing is written,
        at stage 3 with ``gather_16bit_weights_on_model_save`` false.
        """
        if self._whole.zero_optimization_stage() == 3 and not self.zero_gather_16bit_weights_on_model_save():
            return False
        return checkpoint.save_weights(
            self._whole, Path(save_dir) / save_filename, exclude_frozen=exclude_frozen_parameters
        )

    def save_fp16_model(self, save_dir: str | Path, save_filename: str = "model.safetensors") -> bool:
        """`save_16bit_model` under its former name."""
        return self.save_16bit_model(save_dir, save_filename)

    def export_hf(
        self,
        directory: str | Path,
        max_shard_size: int | str = "5GB",
        dtype: torch.dtype | None = None,
        exclude_frozen_parameters: bool = False,
    ) -> None:
        """Writes a folder that ``from_pretrained`` of transformers loads, at any time; call on all ranks.

        See `ds_core.checkpoint.weights.engine_weights.export_folder` for the arguments.
        """
        checkpoint.export_folder(
            self._whole,
            Path(directory),
            max_shard_size=max_shard_size,
            dtype=dtype,
            exclude_frozen=exclude_frozen_parameters,
        )

    def zero_gather_16bit_weights_on_model_save(self) -> bool:
        """The config's ``zero_optimization.gather_16bit_weights_on_model_save``."""
        return bool(self.config.get("zero_optimization.gather_16bit_weights_on_model_save", True))

    def _consolidated_16bit_state_dict(self, exclude_frozen_parameters: bool = False) -> dict[str, torch.Tensor] | None:
        """The full weights in host memory on the first rank, None on the others; call on all ranks.

        Hugging Face accelerate calls this name. One unit is gathered at a time.
        """
        return checkpoint.consolidated_weights(self._whole, exclude_frozen=exclude_frozen_parameters)

    def _zero3_consolidated_16bit_state_dict(
        self, exclude_frozen_parameters: bool = False
    ) -> dict[str, torch.Tensor] | None:
        """`_consolidated_16bit_state_dict`, at any stage."""
        return self._consolidated_16bit_state_dict(exclude_frozen_parameters)
