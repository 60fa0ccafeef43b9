"""The weights of a checkpoint, whole and in fp32, without an engine: as a dict, as files, or in a model.

The names are those that users of DeepSpeed call; a checkpoint of any format that `ds_core.checkpoint.sources` knows is
taken, of any number of ranks and any stage.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ds_core.checkpoint.source import Source
from ds_core.checkpoint.sources import open_source
from ds_core.checkpoint.weights.export import export_weights
from ds_core.checkpoint.weights.source_weights import Weight, tied_names, weights_of
from ds_core.errors import CheckpointError, did_you_mean

__all__ = [
    "LazyTensor",
    "convert_zero_checkpoint_to_fp32_state_dict",
    "get_fp32_state_dict_from_zero_checkpoint",
    "load_state_dict_from_zero_checkpoint",
    "to_torch_tensor",
]

StrPath = str | os.PathLike[str]
AnyModule = TypeVar("AnyModule", bound=torch.nn.Module)
_UNLIMITED = 1 << 62
_SHOWN = 5


class _Opened:
    """Keeps a source open as long as a lazy tensor may ask it."""

    def __init__(self, source: Source) -> None:
        self.source: Source = source
        weakref.finalize(self, source.close)


class LazyTensor:
    """A tensor of a checkpoint that is read when it is asked for; the files stay open while there is one.

    Attributes:
        shape, dtype: of what `contiguous` returns.
    """

    def __init__(self, opened: _Opened, weight: Weight) -> None:
        self._opened: _Opened = opened
        self._weight: Weight = weight
        self.shape: torch.Size = torch.Size(weight.shape)
        self.dtype: torch.dtype = weight.dtype

    def numel(self) -> int:
        """Elements."""
        return self._weight.numel

    def contiguous(self) -> torch.Tensor:
        """A new tensor with the values, read now."""
        return _read(self._opened.source, self._weight)

    def __repr__(self) -> str:
        return f"LazyTensor(name={self._weight.name!r}, shape={tuple(self.shape)}, dtype={self.dtype})"


def get_fp32_state_dict_from_zero_checkpoint(
    checkpoint_dir: StrPath,
    tag: str | None = None,
    exclude_frozen_parameters: bool = False,
    lazy_mode: bool = False,
) -> dict[str, Any]:
    """The model's state dict in host memory: floating-point tensors in fp32, from the masters where there are any.

    Args:
        checkpoint_dir: where checkpoints were saved.
        tag: default the newest.
        exclude_frozen_parameters: leave out parameters that were not trained.
        lazy_mode: values are `LazyTensor`; nothing is read before its ``contiguous()`` is called.

    Returns:
        Values by name; names that share one parameter share one value.

    Raises:
        CheckpointError: the checkpoint is absent or damaged.
    """
    opened = _Opened(open_source(Path(checkpoint_dir), tag))
    weights = weights_of(opened.source, torch.float32, exclude_frozen=exclude_frozen_parameters)
    found: dict[str, Any] = {
        weight.name: LazyTensor(opened, weight) if lazy_mode else _read(opened.source, weight) for weight in weights
    }
    for alias, name in tied_names(opened.source).items():
        if name in found:
            found[alias] = found[name]
    return found


def to_torch_tensor(state_dict: Mapping[str, Any], return_empty_tensor: bool = False) -> dict[str, torch.Tensor]:
    """A state dict of lazy mode as tensors; those that were one value are one tensor.

    Args:
        state_dict: what `get_fp32_state_dict_from_zero_checkpoint` returned.
        return_empty_tensor: uninitialised tensors of the same shapes and dtypes; nothing is read.
    """
    made: dict[int, torch.Tensor] = {}
    for value in state_dict.values():
        if id(value) not in made:
            empty = torch.empty(value.shape, dtype=value.dtype) if return_empty_tensor else None
            made[id(value)] = value.contiguous() if empty is None else empty
    return {name: made[id(value)] for name, value in state_dict.items()}


def convert_zero_checkpoint_to_fp32_state_dict(
    checkpoint_dir: StrPath,
    output_dir: StrPath,
    max_shard_size: int | str | None = "5GB",
    safe_serialization: bool = True,
    tag: str | None = None,
    exclude_frozen_parameters: bool = False,
) -> None:
    """Writes the weights in fp32 as safetensors into a folder; see `ds_core.checkpoint.weights.export.export_weights`.

    Args:
        checkpoint_dir: where checkpoints were saved.
        output_dir: gets ``model.safetensors``, or shards and ``model.safetensors.index.json``.
        max_shard_size: bytes, or a size such as "5GB"; None: one file.
        safe_serialization: must be True.
        tag: default the newest.
        exclude_frozen_parameters: leave out parameters that were not trained.

    Raises:
        CheckpointError: `safe_serialization` is False, or the checkpoint is absent or damaged.
    """
    if not safe_serialization:
        raise CheckpointError(
            "safe_serialization=False asks for files that torch.load unpickles, which can run code when they are "
            "loaded; leave it True and load the .safetensors with safetensors.torch.load_file"
        )
    source = open_source(Path(checkpoint_dir), tag)
    try:
        export_weights(
            source,
            Path(output_dir),
            dtype=torch.float32,
            max_shard_size=_UNLIMITED if max_shard_size is None else max_shard_size,
            exclude_frozen=exclude_frozen_parameters,
        )
    finally:
        source.close()


def load_state_dict_from_zero_checkpoint(
    model: AnyModule, checkpoint_dir: StrPath, tag: str | None = None, *, strict: bool = True
) -> AnyModule:
    """`model`, on the CPU, with the checkpoint's weights in its own dtypes. Tensors are read into it, without a copy.

    Args:
        model: a module with values, not one of the meta device.
        checkpoint_dir: where checkpoints were saved.
        tag: default the newest.
        strict: every tensor of either side must be on the other; False loads those that are on both.

    Raises:
        CheckpointError: the checkpoint is absent, damaged, or of another model.
    """
    model.cpu()
    targets: dict[str, torch.Tensor] = dict(model.named_parameters())
    aliases = {n for n, p in model.named_parameters(remove_duplicate=False) if n not in targets}
    targets |= {n: t for n, t in model.state_dict(keep_vars=True).items() if n not in targets and n not in aliases}
    source = open_source(Path(checkpoint_dir), tag)
    try:
        dtypes = {name: tensor.dtype for name, tensor in targets.items()}
        weights = {weight.name: weight for weight in weights_of(source, dtypes)}
        for alias, name in tied_names(source).items():
            if name in weights:
                weights.setdefault(alias, weights[name])
        if strict:
            known = {*weights} - {*tied_names(source)} - aliases
            _check_names(targets, weights, known, source)
        for name, tensor in targets.items():
            if name in weights:
                _load(source, weights[name], name, tensor.data)
    finally:
        source.close()
    return model


def _check_names(
    targets: Mapping[str, torch.Tensor], weights: Mapping[str, Weight], saved: set[str], source: Source
) -> None:
    missing = [name for name in targets if name not in weights]
    if missing:
        raise CheckpointError(
            f"{source.path} lacks {_listed(missing)} of the model.{did_you_mean(missing[0], weights)} "
            "Pass strict=False to leave them as they are"
        )
    unexpected = [name for name in saved if name not in targets]
    if unexpected:
        raise CheckpointError(
            f"{source.path} holds {_listed(sorted(unexpected))}, which the model does not have; pass strict=False to "
            "leave them out"
        )


def _load(source: Source, weight: Weight, name: str, target: torch.Tensor) -> None:
    if tuple(target.shape) != weight.shape:
        raise CheckpointError(
            f"{name!r} has shape {tuple(target.shape)} in the model and {weight.shape} in {source.path}"
        )
    if target.is_meta:
        raise CheckpointError(f"{name!r} of the model is on the meta device; call model.to_empty(device='cpu') first")
    if target.is_contiguous():
        source.read(weight.key, target.view(-1))
    else:
        target.copy_(_read(source, weight))


def _read(source: Source, weight: Weight) -> torch.Tensor:
    values = torch.empty(weight.numel, dtype=weight.dtype)
    source.read(weight.key, values)
    return values.view(weight.shape)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more
