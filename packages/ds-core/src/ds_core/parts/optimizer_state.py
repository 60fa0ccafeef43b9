"""What of an optimizer goes into a checkpoint: every tensor under its parameter's name, however it was sharded."""

from __future__ import annotations

import functools
from typing import Any

import torch

from ds_core.errors import CheckpointError
from ds_core.layout import intersect
from ds_core.masters import MasterPiece
from ds_core.optim.family import family
from ds_core.optim.lazy import PacksStates
from ds_core.placement import Placement
from ds_core.space import UpdateSpace
from ds_core.state import Deferred, Fragment, StatePlan

__all__ = ["MASTER", "plan_optimizer"]

MASTER = "master"


def plan_optimizer(
    optimizer: torch.optim.Optimizer,
    pieces: list[MasterPiece],
    steps: dict[int, list[int]],
    space: UpdateSpace,
    placement: Placement,
) -> StatePlan:
    """Fragments of masters and element-shaped states; other states whole; scalars and hyperparameters as values.

    Args:
        optimizer: its states are read, not changed.
        pieces: the master pieces of this rank.
        steps: step count per parameter, by id of the flat group.
        space: says which elements this rank writes, so that all ranks together write each once.
        placement: knows the states that are not in memory; they are loaded, a piece at a time, when they are written.

    Raises:
        CheckpointError: a sharded optimizer keeps a state that is not shaped like its parameter.
    """
    plan = StatePlan()
    scalars: dict[str, dict[str, Any]] = {}
    for piece in pieces:
        tensors: dict[str, torch.Tensor | Deferred]
        tensors, whole, small = _read(optimizer, piece)
        is_sliced = any(piece.flat.logical(index).shape != slot.shape for index, slot, _ in piece.fragments())
        if whole and (space.is_sharded or is_sliced):
            raise CheckpointError(
                f"{type(optimizer).__name__} keeps {sorted(whole)} in a shape of its own, which cannot be saved from "
                "shards or slices; use zero_optimization.stage 0, and no expert parallelism, with this optimizer"
            )
        if piece.is_finer:
            tensors[MASTER] = piece.master.detach().view(-1)
        deferred = placement.deferred(piece)
        if deferred is not None:
            tensors = {name or MASTER: tensor for name, tensor in deferred.items() if name or piece.is_finer}
        mine = space.measured(piece.flat)
        for index, slot, part in piece.fragments():
            logical = piece.flat.logical(index)
            scalars[slot.name] = {**small, "taken": steps[id(piece.flat)][index]}
            for written in filter(None, (intersect(share, part.start, part.stop) for share in mine)):
                low, high = written.start - piece.span.start, written.stop - piece.span.start
                bounds = piece.flat.bounds(index, written)
                for key, values in tensors.items():
                    name = f"optimizer/{key}/{slot.name}"
                    part_of = values if isinstance(values, Deferred) else values[low:high]
                    plan.fragments.append(Fragment(name, logical.shape, bounds.start, bounds.stop, part_of, low))
            for key, values in whole.items() if piece.flat.replicas.rank == 0 else ():
                flat = values.detach().reshape(-1)
                name = f"optimizer/{key}/{slot.name}"
                plan.fragments.append(Fragment(name, tuple(values.shape), 0, flat.numel(), flat))
    plan.values["optimizer"] = {
        "type": type(optimizer).__name__,
        "family": family(optimizer),
        "groups": [{k: v for k, v in g.items() if k != "params" and _is_json(v)} for g in optimizer.param_groups],
    }
    plan.values["optimizer_scalars"] = scalars
    return plan


def _read(
    optimizer: torch.optim.Optimizer, piece: MasterPiece
) -> tuple[dict[str, torch.Tensor | Deferred], dict[str, torch.Tensor], dict[str, Any]]:
    """As `_split`; states that are packed are unpacked when they are written."""
    if not isinstance(optimizer, PacksStates):
        return _split(optimizer.state.get(piece.master, {}), piece)
    _, _, small = _split(optimizer.others(piece.master), piece)
    tensors: dict[str, torch.Tensor | Deferred] = {
        name: Deferred(torch.float32, functools.partial(optimizer.unpack, piece.master, name))
        for name in optimizer.packed(piece.master)
    }
    return tensors, {}, small


def _split(
    state: dict[str, Any], piece: MasterPiece
) -> tuple[dict[str, torch.Tensor | Deferred], dict[str, torch.Tensor], dict[str, Any]]:
    """Element-shaped tensors flattened, tensors of another shape, and JSON scalars."""
    tensors: dict[str, torch.Tensor | Deferred] = {}
    whole: dict[str, torch.Tensor] = {}
    scalars: dict[str, Any] = {}
    for key, value in state.items():
        if isinstance(value, torch.Tensor):
            if value.shape == piece.master.shape and (value.dim() > 0 or key != "step"):
                tensors[key] = value.detach().reshape(-1)
            elif value.numel() == 1:
                scalars[key] = {"tensor": value.item()}
            else:
                whole[key] = value
        elif _is_json(value):
            scalars[key] = value
    return tensors, whole, scalars


def _is_json(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_json(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
