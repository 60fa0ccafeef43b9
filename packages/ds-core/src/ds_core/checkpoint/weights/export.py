"""Writes the weights of a checkpoint as a Hugging Face folder, a block at a time and in one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.source import Source
from ds_core.checkpoint.storage.disk import DISK, Disk
from ds_core.checkpoint.weights.folder import FolderPlan, WeightFolder, parse_size, plan_folder
from ds_core.checkpoint.weights.hf_config import copied_files
from ds_core.checkpoint.weights.source_weights import FLOATS, read_blocks, weights_of
from ds_core.checkpoint.weights.tensor_writer import TensorEntry

__all__ = ["export_weights", "exported_bytes"]


def export_weights(
    source: Source,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "5GB",
    exclude_frozen: bool = False,
    config_from: Path | None = None,
    told: Callable[[int], Any] = lambda nbytes: None,
    disk: Disk = DISK,
) -> FolderPlan:
    """Writes safetensors, one file or shards with an index, that transformers loads; what was written.

    Memory is one block of `ds_core.checkpoint.weights.source_weights.BLOCK_NUMEL` elements and the reader's own.

    Args:
        source: an open checkpoint of any format.
        directory: see Note [A folder that is never half new] of `ds_core.checkpoint.weights.folder`.
        dtype: of floating-point tensors; None keeps what was saved.
        max_shard_size: bytes, or a size such as "5GB".
        exclude_frozen: leave out parameters that were not trained.
        config_from: a folder of the model, whose configuration and tokenizer are copied.
        told: gets the bytes written, block by block.
        disk: operations on files.

    Raises:
        CheckpointError: nothing to export, or a file cannot be read.
        OSError: a file cannot be written; nothing of it is left.
    """
    weights = weights_of(source, dtype, exclude_frozen=exclude_frozen)
    plan = plan_folder([TensorEntry(w.name, w.dtype, w.shape) for w in weights], parse_size(max_shard_size))
    written = {w.dtype for w in weights if w.dtype in FLOATS}
    files = {} if config_from is None else copied_files(config_from, written.pop() if len(written) == 1 else dtype)
    folder = WeightFolder(directory, plan, disk)
    try:
        for weight in weights:

            def put(block: torch.Tensor, start: int, name: str = weight.name) -> None:
                folder.put(name, block, start)
                told(block.nbytes)

            read_blocks(source, weight, put)
        for name, content in files.items():
            folder.add(name, content)
        folder.commit()
    except BaseException:
        folder.abandon()
        raise
    return plan


def exported_bytes(source: Source, dtype: torch.dtype | None, *, exclude_frozen: bool = False) -> int:
    """What `export_weights` will tell of in all."""
    weights = weights_of(source, dtype, exclude_frozen=exclude_frozen)
    return sum(weight.numel * weight.dtype.itemsize for weight in weights)
