"""DeepSpeed's ZeRO checkpoints, stages 0 to 3, as a `Source`.

The layout was learned from what the published package writes (0.19.8), and from its documentation.

Stages 1 and 2: ``mp_rank_00_model_states.pt`` has the whole weights. A rank's optimizer file has, by optimizer group, a
flat partition of fp32 masters, states of the same length, and ``param_slice_mappings``: which range of the partition is
of which parameter. Ranges of a parameter follow each other in order of rank.

Stage 3: a rank's optimizer file has flat groups. The parameters of an optimizer group lie in them in order, each by
ceil(numel / ranks) elements. These masters are the weights; the rank's model file has its part of frozen parameters,
and buffers.

Stage 0: the model file has all of it. Optimizer states are numbered, see positional.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ds_core.checkpoint.foreign.deepspeed_engine import engine_state, hyperparameters, loss_scale, updates
from ds_core.checkpoint.foreign.deepspeed_folder import DeepspeedFolder, named_tag
from ds_core.checkpoint.foreign.deepspeed_shards import (
    Placed,
    Shapes,
    flat_groups,
    parameter_shapes,
    sharded,
    sliced,
)
from ds_core.checkpoint.foreign.guard import understood
from ds_core.checkpoint.foreign.indexed import IndexedSource
from ds_core.checkpoint.foreign.pieces import flat_piece
from ds_core.checkpoint.foreign.plain import number
from ds_core.checkpoint.foreign.positional import PositionalSource
from ds_core.checkpoint.foreign.stored import StoredTensor
from ds_core.errors import CheckpointError

__all__ = ["add_frozen", "detect", "open_zero"]

FORMAT = "deepspeed"

States = Mapping[str, Any]


def detect(directory: Path, tag: str | None) -> str | None:
    """The tag whose folder has DeepSpeed's files; ``""`` where they are in `directory` itself."""
    if tag is None and DeepspeedFolder.is_one(directory):
        return None if (directory / "zero").is_dir() else ""
    found = named_tag(directory, tag) if tag is not None or (directory / "latest").is_file() else None
    if found is None or not DeepspeedFolder.is_one(directory / found) or (directory / found / "zero").is_dir():
        return None
    return found


def open_zero(directory: Path, tag: str, strict: bool) -> IndexedSource:
    """The checkpoint, every tensor checked to be whole; no tensor is read.

    Raises:
        CheckpointError: files are missing or damaged, or the model was split over more than data-parallel ranks.
    """
    path = directory / tag
    with understood(path, FORMAT):
        return _open(path, strict)


def _open(path: Path, strict: bool) -> IndexedSource:
    folder = DeepspeedFolder.find(path)
    models = [folder.read(file) for file in folder.model]
    optimizers = [_optimizer_dict(file, folder.read(file)) for file in folder.optimizer]
    source: IndexedSource
    if not optimizers:
        source = PositionalSource(path, FORMAT, strict)
        _add_module(source, models[0], folder.model[0])
        source.take(models[0].get("optimizer"), _trainable(models[0]), updates(models[0]))
    else:
        source = IndexedSource(path, FORMAT, strict)
        _check_ranks(folder, optimizers)
        shapes = parameter_shapes(models[0], folder.model[0])
        if "fp32_flat_groups" in optimizers[0]:
            add_frozen(source, models, folder)
            names = _add_stage3(source, models[0], optimizers, shapes)
        else:
            _add_module(source, models[0], folder.model[0])
            names = _add_stage12(source, models[0], optimizers, shapes, folder)
        _add_settings(source, optimizers[0], names, models[0])
        shared = models[0].get("shared_params")
        for name, of in shared.items() if isinstance(shared, dict) else ():
            if f"model/{name}" not in source and f"model/{of}" in source:
                source.alias(f"model/{name}", f"model/{of}")
    engine_state(source, models[0])
    source.seal()
    return source


# ---- the module


def _add_module(source: IndexedSource, saved: States, path: Path) -> None:
    """Weights and buffers that are whole in the model file."""
    module = saved.get("module")
    if type(module) is not dict:
        raise CheckpointError(f"{path} has no weights under 'module'; it was written without them")
    for name, tensor in module.items():
        if isinstance(tensor, StoredTensor):
            source.add(f"model/{name}", tensor)


def add_frozen(source: IndexedSource, models: list[dict[str, Any]], folder: DeepspeedFolder) -> None:
    """Buffers, and frozen parameters from every rank's part."""
    buffers = set(models[0].get("buffer_names") or ())
    for name, tensor in models[0]["module"].items():
        if name in buffers and isinstance(tensor, StoredTensor):
            source.add(f"model/{name}", tensor)
    shapes = models[0].get("frozen_param_shapes") or {}
    for name, shape in shapes.items():
        numel = math.prod(shape)
        share = -(-numel // len(models))
        for rank, saved in enumerate(models):
            part = (saved.get("frozen_param_fragments") or {}).get(name)
            count = min(share, numel - rank * share)
            if count <= 0:
                continue
            if not isinstance(part, StoredTensor) or part.numel < count:
                raise CheckpointError(f"{folder.model[rank]} lacks this rank's part of the frozen {name!r}")
            source.add_piece(f"model/{name}", part.dtype, shape, flat_piece(numel, rank * share, count, part))


# ---- optimizer states


def _add_stage3(
    source: IndexedSource, model: States, optimizers: list[dict[str, Any]], shapes: Shapes
) -> list[list[int]]:
    flats = [[_tensor(t) for t in saved["fp32_flat_groups"]] for saved in optimizers]
    lengths = [[flat.numel for flat in mine] for mine in flats]
    states = [_numbered_states(saved.get("optimizer_state_dict")) for saved in optimizers]
    groups = flat_groups(optimizers[0].get("optimizer_state_dict"), len(shapes), len(flats[0]))
    known = {name: shape for group in shapes for name, shape in group.items()}
    for placed in sharded(lengths, shapes, groups):
        shape, master = known[placed.name], flats[placed.rank][placed.flat]
        piece = flat_piece(math.prod(shape), placed.start, placed.numel, master, placed.at)
        working = model["module"].get(placed.name)
        dtype = working.dtype if isinstance(working, StoredTensor) else master.dtype
        source.add_piece(f"model/{placed.name}", dtype, shape, piece)
        if dtype != master.dtype:
            source.add_piece(f"optimizer/master/{placed.name}", master.dtype, shape, piece)
        _add_states(source, placed, shape, states[placed.rank].get(placed.flat, {}), master.numel)
    return groups


def _add_stage12(
    source: IndexedSource, model: States, optimizers: list[dict[str, Any]], shapes: Shapes, folder: DeepspeedFolder
) -> list[list[int]]:
    known = {name: shape for group in shapes for name, shape in group.items()}
    for placed in sliced(optimizers, shapes, folder.optimizer):
        saved, shape = optimizers[placed.rank], known[placed.name]
        master = _tensor(saved["single_partition_of_fp32_groups"][placed.flat])
        piece = flat_piece(math.prod(shape), placed.start, placed.numel, master, placed.at)
        working = model["module"].get(placed.name)
        if not isinstance(working, StoredTensor) or working.dtype != master.dtype:
            source.add_piece(f"optimizer/master/{placed.name}", master.dtype, shape, piece)
        _add_states(source, placed, shape, _base_state(saved, placed.flat), master.numel)
    return [[index] for index in range(len(shapes))]


def _add_states(source: IndexedSource, placed: Placed, shape: tuple[int, ...], states: States, numel: int) -> None:
    scalars = source.values.setdefault("optimizer_scalars", {}).setdefault(placed.name, {})
    for state, tensor in states.items():
        value = number(tensor) if isinstance(tensor, StoredTensor) and not tensor.shape else tensor
        if isinstance(value, StoredTensor):
            if placed.at + placed.numel > value.numel:
                raise CheckpointError(
                    f"{value.storage.window.path}: {state!r} has {value.numel} elements where masters have {numel}; "
                    "the states are elsewhere (offloaded to files), or damaged"
                )
            piece = flat_piece(math.prod(shape), placed.start, placed.numel, value, placed.at)
            source.add_piece(f"optimizer/{state}/{placed.name}", value.dtype, shape, piece)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            scalars[state] = {"tensor": float(value)} if state == "step" else value


# ---- what the files say about themselves


def _add_settings(source: IndexedSource, saved: States, flats: list[list[int]], model: States) -> None:
    """Hyperparameters, step counts and the loss scale."""
    base = saved.get("base_optimizer_state", saved.get("optimizer_state_dict"))
    groups = base.get("param_groups") if isinstance(base, dict) else None
    listed = [hyperparameters(group) for group in groups] if isinstance(groups, list) else [{} for _ in flats]
    source.values["optimizer"] = {"type": None, "groups": listed}
    taken = updates(model)
    counted = [group.get("step") for group in groups] if isinstance(groups, list) else []
    for scalars in source.values.setdefault("optimizer_scalars", {}).values():
        step = scalars.get("step", {}).get("tensor") or next((c for c in counted if isinstance(c, int) and c), taken)
        scalars["taken"] = int(step)
    scale = loss_scale(saved)
    if scale is not None:
        source.values["loss_scale"] = scale


def _optimizer_dict(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    saved = content.get("optimizer_state_dict")
    if type(saved) is not dict or not ({"fp32_flat_groups", "single_partition_of_fp32_groups"} & set(saved)):
        raise CheckpointError(f"{path} holds no optimizer state of ZeRO that is known here")
    return saved


def _check_ranks(folder: DeepspeedFolder, optimizers: list[dict[str, Any]]) -> None:
    counts = optimizers[0].get("partition_count")
    wanted = max((c for c in counts if type(c) is int), default=0) if isinstance(counts, list) else counts
    if type(wanted) is int and wanted != len(optimizers):
        raise CheckpointError(
            f"{folder.path} was written by {wanted} ranks and has optimizer files of {len(optimizers)}; copy the "
            "missing ones back"
        )
    if "fp32_flat_groups" in optimizers[0] and len(folder.model) != len(optimizers):
        raise CheckpointError(
            f"{folder.path} has model files of {len(folder.model)} ranks and optimizer files of {len(optimizers)}"
        )


def _numbered_states(base: Any) -> dict[int, States]:
    states = base.get("state") if isinstance(base, dict) else None
    return states if isinstance(states, dict) else {}


def _base_state(saved: States, flat: int) -> States:
    """States of a flat group; with ``elastic_checkpoint`` they are a list by group."""
    base = saved.get("base_optimizer_state")
    numbered = dict(enumerate(base)) if isinstance(base, list) else _numbered_states(base)
    found = numbered.get(flat, {})
    return found if isinstance(found, dict) else {}


def _tensor(value: Any) -> StoredTensor:
    if not isinstance(value, StoredTensor):
        raise CheckpointError(f"a flat group of masters is a {type(value).__name__}, not a tensor")
    return value


def _trainable(saved: States) -> dict[str, StoredTensor]:
    """Parameters that may have been trained, each once: no buffers, and one name of those that share a storage."""
    buffers, seen, found = set(saved.get("buffer_names") or ()), set(), {}
    for name, tensor in saved["module"].items():
        if name in buffers or not isinstance(tensor, StoredTensor):
            continue
        place = (tensor.storage.window.start, tensor.offset, tensor.shape)
        if place not in seen:
            seen.add(place)
            found[name] = tensor
    return found
