"""DeepSpeed's universal checkpoints: one file a parameter and state, as ``ds_to_universal`` writes them.

``zero/<parameter>/fp32.pt``, ``exp_avg.pt``, ... hold a tensor, or a dict with it as ``param``; ``step.pt`` counts
updates. ``zero/optimizer_state.pt`` has hyperparameters and the loss scaler, the model states file all else. They are
whole, so how many ranks and of what kind wrote the original does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ds_core.checkpoint.foreign.deepspeed_engine import engine_state, hyperparameters, loss_scale, updates
from ds_core.checkpoint.foreign.deepspeed_folder import DeepspeedFolder, named_tag
from ds_core.checkpoint.foreign.deepspeed_shards import parameter_shapes
from ds_core.checkpoint.foreign.deepspeed_zero import add_frozen
from ds_core.checkpoint.foreign.guard import understood
from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.pieces import flat_piece
from ds_core.checkpoint.foreign.plain import number
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.checkpoint.foreign.torch_file import read_torch_file
from ds_core.errors import CheckpointError

__all__ = ["detect", "open_universal"]

FORMAT = "deepspeed-universal"
_MASTER, _STEP, _OPTIMIZER = "fp32", "step", "optimizer_state"


def detect(directory: Path, tag: str | None) -> str | None:
    """The tag that is given, or that ``latest_universal`` or ``latest`` names; ``""`` for a folder with ``zero``."""
    if tag is None and _is_one(directory):
        return ""
    named = ("latest_universal", "latest") if tag is None else ("latest",)
    for file in named:
        found = named_tag(directory, tag, file) if tag is not None or (directory / file).is_file() else None
        if found is not None and _is_one(directory / found):
            return found
    return None


def _is_one(path: Path) -> bool:
    return (path / "zero").is_dir() and DeepspeedFolder.is_one(path)


def open_universal(directory: Path, tag: str, strict: bool) -> IndexedSource:
    """The checkpoint, every tensor checked to be whole; no tensor is read.

    Raises:
        CheckpointError: files are missing or damaged.
    """
    path = directory / tag
    with understood(path, FORMAT):
        return _open(path, strict)


def _open(path: Path, strict: bool) -> IndexedSource:
    folder = DeepspeedFolder.find(path, merged=True)
    models = [folder.read(file) for file in folder.model]
    source = IndexedSource(path, FORMAT, strict)
    shapes = parameter_shapes(models[0], folder.model[0])
    if any(isinstance(t, StoredTensor) and t.numel == 0 for t in models[0]["module"].values()):
        add_frozen(source, models, folder)
    optimizer = folder.read(path / "zero" / f"{_OPTIMIZER}.pt")
    base = optimizer.get("optimizer_state_dict")
    counted = base.get("state", {}).get(0, {}).get("step") if isinstance(base, dict) else None
    scalars: dict[str, dict[str, Any]] = {}
    for name, shape in (item for group in shapes for item in group.items()):
        scalars[name] = _add_parameter(source, path / "zero" / name, name, shape, models[0])
        if isinstance(number(counted), int | float):
            scalars[name].setdefault(_STEP, {"tensor": float(number(counted))})
        scalars[name]["taken"] = int(scalars[name][_STEP]["tensor"]) if _STEP in scalars[name] else updates(models[0])
    for name, tensor in models[0]["module"].items():
        if isinstance(tensor, StoredTensor) and f"model/{name}" not in source and tensor.numel:
            source.add(f"model/{name}", tensor)
    for name, of in (models[0].get("shared_params") or {}).items():
        if f"model/{of}" in source:
            source.alias(f"model/{name}", f"model/{of}")
    groups = optimizer.get("param_groups")
    listed = [hyperparameters(group) for group in groups] if isinstance(groups, list) else [{} for _ in shapes]
    source.values |= {"optimizer": {"type": None, "groups": listed}, "optimizer_scalars": scalars}
    scale = loss_scale(optimizer)
    if scale is not None:
        source.values["loss_scale"] = scale
    engine_state(source, models[0])
    source.seal()
    return source


def _add_parameter(
    source: IndexedSource, path: Path, name: str, shape: tuple[int, ...], model: Mapping[str, Any]
) -> dict[str, Any]:
    """Adds the weights and states of one parameter; its scalars."""
    scalars: dict[str, Any] = {}
    working = model["module"].get(name)
    dtype = working.dtype if isinstance(working, StoredTensor) else torch.float32
    if Path(name).name != name or not path.is_dir():
        raise CheckpointError(f"{source.path} lacks the folder zero/{name} of a parameter it lists")
    for file in sorted(path.glob("*.pt")):
        content = read_torch_file(file, within=source.path)
        tensor = content.get("param") if isinstance(content, dict) else content
        if file.stem == _STEP:
            scalars[_STEP] = {"tensor": float(number(tensor))}
            continue
        if not isinstance(tensor, StoredTensor) or tensor.numel != math.prod(shape):
            raise CheckpointError(f"{file} does not hold the {math.prod(shape)} elements of {name!r}")
        piece = flat_piece(tensor.numel, 0, tensor.numel, tensor)
        if file.stem != _MASTER:
            source.add_piece(f"optimizer/{file.stem}/{name}", tensor.dtype, shape, piece)
            continue
        source.add_piece(f"model/{name}", dtype, shape, piece)
        if dtype != tensor.dtype:
            source.add_piece(f"optimizer/master/{name}", tensor.dtype, shape, piece)
    return scalars
