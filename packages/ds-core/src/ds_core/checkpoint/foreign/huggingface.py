"""Folders of weights as Hugging Face lays them out, safetensors or ``pytorch_model.bin``, as a `Source`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ds_core.checkpoint.foreign.deepspeed_folder import named_tag
from ds_core.checkpoint.foreign.guard import understood
from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.stored import Storage, StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.checkpoint.foreign.window import open_window
from ds_core.checkpoint.storage.safetensors_file import read_header
from ds_core.checkpoint.storage.weight_map import read_weight_map
from ds_core.errors import CheckpointError

__all__ = ["detect", "open_weights"]

FORMAT = "huggingface"
_INDICES = ("*.safetensors.index.json", "*.bin.index.json")
_FILES = ("*.safetensors", "pytorch_model*.bin")


def detect(directory: Path, tag: str | None) -> str | None:
    """``""`` where `directory` has weights; with a tag, the tag where its folder has."""
    if tag is not None and named_tag(directory, tag) is None:
        return None
    folder = directory / (tag or "")
    found = [file for pattern in (*_INDICES, *_FILES) for file in folder.glob(pattern)] if folder.is_dir() else []
    # Files named by rank are of an unfinished checkpoint of ours.
    return (tag or "") if any(not file.name.startswith("rank-") for file in found) else None


def open_weights(directory: Path, tag: str, strict: bool) -> IndexedSource:
    """The weights; no tensor is read. Links are followed, as a hub's cache is made of them.

    Raises:
        CheckpointError: a file is missing or damaged, or an index names what is not there.
    """
    with understood(directory / tag, FORMAT):
        return _open(directory / tag, strict)


def _open(path: Path, strict: bool) -> IndexedSource:
    source = IndexedSource(path, FORMAT, strict)
    wanted: dict[str, str] | None = None
    for index_pattern, pattern in zip(_INDICES, _FILES, strict=True):
        indices = sorted(path.glob(index_pattern))
        if len(indices) > 1:
            raise CheckpointError(f"{path} has {len(indices)} files named {index_pattern}; leave one in the folder")
        if indices:
            wanted = read_weight_map(indices[0])
            files: Iterable[Path] = [path / name for name in dict.fromkeys(wanted.values())]
        else:
            files = sorted(path.glob(pattern))
        for file in files:
            for name, tensor in _tensors(file).items():
                if wanted is not None and wanted.get(name) != file.name:
                    continue
                if f"model/{name}" in source:
                    raise CheckpointError(
                        f"{name!r} is in {file} and in another file of the folder; an index would tell"
                    )
                source.add(f"model/{name}", tensor)
        if files:
            break
    missing = [name for name in wanted or () if f"model/{name}" not in source]
    if missing:
        raise CheckpointError(f"the index of {path} says {missing[0]!r} is in {(wanted or {})[missing[0]]}; it is not")
    source.seal()
    return source


def _tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, by name."""
    if path.suffix == ".safetensors":
        window = open_window(path)
        found = {}
        for name, entry in read_header(path, follow=True).items():
            part = window.part(entry.offset_bytes, entry.numel * entry.dtype.itemsize, repr(name))
            strides = [1] * len(entry.shape)
            for dim in range(len(strides) - 2, -1, -1):
                strides[dim] = strides[dim + 1] * max(entry.shape[dim + 1], 1)
            found[name] = StoredTensor.of(Storage(part, entry.dtype, entry.numel), 0, entry.shape, strides)
        return found
    content = read_torch_file(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; weights are a dict of tensors")
    return {name: tensor for name, tensor in content.items() if type(name) is str and isinstance(tensor, StoredTensor)}
