"""What `PipelineModule` does with files of layers, under the names of DeepSpeed's; see `ds_pipeline.layer_files`.

For weights alone. ``engine.save_checkpoint`` keeps everything, at every stage of ZeRO, and loads into any division.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ds_core import comm
from ds_pipeline.errors import LayerFileError
from ds_pipeline.layer_files import layer_path, layer_paths, load_layer, save_layer
from ds_pipeline.spec import LayerSpec, TiedLayerSpec

if TYPE_CHECKING:
    from ds_pipeline.stage import Stages
    from ds_pipeline.topology import ProcessTopology

__all__ = ["SavedLayers"]


class SavedLayers:
    """The part of `PipelineModule` that saves and loads layers one by one."""

    tied: nn.ModuleDict
    stages: Stages
    _specs: list[LayerSpec | nn.Module | Callable[[Any], Any]]
    _run: dict[int, Callable[[Any], Any]]
    _first_of_key: dict[str, int]

    def topology(self) -> ProcessTopology:
        """See `PipelineModule`."""
        raise NotImplementedError

    def ckpt_prefix(self, checkpoints_path: str | Path, tag: str) -> str:
        """The beginning of names of this stage's files in a checkpoint, the same on all its data ranks."""
        place = self.topology().get_rank_repr(comm.get_rank(), omit_axes=("data",))
        return str(Path(checkpoints_path) / str(tag) / f"module-{place}")

    def ckpt_layer_path(self, ckpt_dir: str | Path, local_layer_idx: int) -> str:
        """Where a layer of this rank is written, counted from the first one here."""
        return str(layer_path(ckpt_dir, self._global(local_layer_idx)))

    def ckpt_layer_path_list(self, ckpt_dir: str | Path, local_layer_idx: int) -> list[str]:
        """The files there are of a layer of this rank, counted from the first one here."""
        return [str(path) for path in layer_paths(ckpt_dir, self._global(local_layer_idx))]

    def save_state_dict(
        self, save_dir: str | Path, checkpoint_engine: Any = None, exclude_frozen_params: bool = False
    ) -> None:
        """Writes one file for each layer of the model; a tied layer where it is first. Called on all ranks.

        Ranks with the same layers share the work. All files are there when it returns.

        Raises:
            LayerFileError: parameters are in shards, or experts are divided over ranks.
        """
        del checkpoint_engine  # files are safetensors, written here
        copies = comm.get_world_size() // self.stages.ranks
        for place, (index, layer) in enumerate(self._layers_with_files(every_tied=False)):
            if copies > 1 and any(not getattr(parameter, "allreduce", True) for parameter in layer.parameters()):
                raise LayerFileError(
                    f"layer {index} has experts, which ranks may divide; engine.save_checkpoint writes all of them"
                )
            if place % copies == comm.get_rank() % copies:
                frozen = [parameter for parameter in layer.parameters() if not parameter.requires_grad]
                save_layer(save_dir, index, layer, leave_out=frozen if exclude_frozen_params else ())
        if comm.is_initialized():
            comm.barrier()

    def load_state_dir(self, load_dir: str | Path, checkpoint_engine: Any = None, strict: bool = True) -> None:
        """Reads this rank's layers, written by any number of stages or by DeepSpeed. Call it before ``initialize``.

        An engine that keeps finer copies of weights takes them anew with
        ``engine.load_module_state_dict(engine.module_state_dict(), strict=False)``.

        Raises:
            LayerFileError: a file is missing, or of another layer.
        """
        del checkpoint_engine
        for index, layer in self._layers_with_files(every_tied=True):
            load_layer(load_dir, index, layer, strict=strict)

    def _global(self, local_layer_idx: int) -> int:
        here = sorted(self._run)
        if not 0 <= local_layer_idx < len(here):
            raise LayerFileError(f"layer {local_layer_idx} does not exist: this rank has layers 0 to {len(here) - 1}")
        return here[local_layer_idx]

    def _layers_with_files(self, *, every_tied: bool) -> list[tuple[int, nn.Module]]:
        """This rank's modules with the numbers of their files; a tied one here where it is first, or every one."""
        found: dict[int, nn.Module] = {}
        for index in sorted(self._run):
            spec, layer = self._specs[index], self._run[index]
            if isinstance(spec, TiedLayerSpec):
                first = self._first_of_key[spec.key]
                if every_tied or first == index:
                    found[first] = self.tied[spec.key]
            elif isinstance(layer, nn.Module):
                found[index] = layer
        return list(found.items())
