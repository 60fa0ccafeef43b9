"""What programs ask of ``engine.checkpoint_engine``: whether writes go on in the background, and to wait for them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.errors import CheckpointError

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["CheckpointEngine"]


class CheckpointEngine:
    """The engine's writer of checkpoints, under the names of DeepSpeed's checkpoint engines."""

    def __init__(self, engine: EngineApi) -> None:
        self._engine: EngineApi = engine

    def is_decoupled(self) -> bool:
        """Whether ``save_checkpoint`` returns before its files are written (``checkpoint.asynchronous``)."""
        return bool(self._engine.config["checkpoint"].asynchronous)

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        """Whether that rank writes: every rank writes its part."""
        return 0 <= dp_rank < self._engine.dp_world_size

    def preserves_storage_sharing(self) -> bool:
        """False: of tensors that share memory each is written as it is."""
        return False

    def create(self, info: Any) -> None:
        """Nothing to announce: ``save_checkpoint`` begins and ends a checkpoint itself."""

    def makedirs(self, path: str | Path, exist_ok: bool = False) -> None:
        """Makes a folder and those above it."""
        Path(path).mkdir(parents=True, exist_ok=exist_ok)

    def commit(self, info: Any = None) -> bool:
        """True, when the last checkpoint is on disk.

        Raises:
            CheckpointError: it could not be written.
        """
        self._engine.wait_for_checkpoint()
        return True

    def cleanup(self) -> None:
        """Waits as `commit`."""
        self.commit()

    def load(self, path: str | Path, map_location: Any = None) -> Any:
        """What a file of torch.save holds, read without running it: containers, plain values, and tensors.

        Raises:
            CheckpointError: damaged, or it asks for objects of classes.
        """
        device = torch.device("cpu") if map_location is None else torch.device(map_location)
        return _read(read_torch_file(Path(path)), device)

    def save(self, state_dict: Any, path: str | Path) -> NoReturn:
        """Refused: files of torch.save are programs, and none is written.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(
            f"checkpoint_engine.save({str(path)!r}) would write a pickle; engine.save_checkpoint(folder, "
            "client_state={...}) keeps what a script has, and safetensors.torch.save_file writes tensors by name"
        )


def _read(value: Any, device: torch.device) -> Any:
    if isinstance(value, StoredTensor):
        return value.full().to(device)
    if isinstance(value, dict):
        return {key: _read(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_read(item, device) for item in value]
        return items if isinstance(value, list) else tuple(items)
    return value
