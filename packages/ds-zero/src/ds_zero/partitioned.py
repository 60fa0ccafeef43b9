"""Parameters that were sharded one by one before any engine: what `Init` leaves, and what engines take over.

Each rank keeps one even piece of the flattened parameter, padded at the end; the parameter itself is a stand-in of its
logical shape. An engine re-lays the pieces into the shards of its own plan, one parameter at a time.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ds_core import comm
from ds_core.errors import ModelError
from ds_core.placeholder import assign, placeholder
from ds_core.values import present
from ds_zero.params import describe, describe_shard, forget

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["checksum", "full_value", "gathered_pieces", "is_partitioned", "partition", "take_over"]


@dataclass(slots=True)
class _Piece:
    """This rank's part of a parameter, 1-D, and the ranks that have the others."""

    values: torch.Tensor
    shape: torch.Size
    group: ProcessGroup | None


_PIECES: Any = WeakIdKeyDictionary()


def is_partitioned(parameter: torch.nn.Parameter) -> bool:
    """Whether `parameter` is held in pieces, by no engine."""
    return parameter in _PIECES


def partition(parameter: torch.nn.Parameter, value: torch.Tensor, group: ProcessGroup | None) -> None:
    """Keeps this rank's part of `value`, and makes `parameter` a stand-in. No communication.

    Args:
        parameter: of the same shape; left whole where it has a single element.
        value: the full value, the same on all ranks; not kept.
        group: the ranks that share it.
    """
    describe(parameter, group)
    ranks = comm.get_world_size(group)
    if value.numel() <= 1 or value.dim() == 0 or ranks == 1:
        assign(parameter, value.detach().clone())
        describe_shard(parameter, parameter.detach().view(-1))
        return
    size = math.ceil(value.numel() / ranks)
    first = comm.get_rank(group) * size
    mine = torch.zeros(size, dtype=value.dtype, device=value.device)
    part = value.detach().reshape(-1)[first : first + size]
    mine[: part.numel()].copy_(part)
    _PIECES[parameter] = _Piece(mine, value.shape, group)
    describe_shard(parameter, mine)
    assign(parameter, placeholder(value.shape, value.dtype, value.device))


def full_value(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The full value of a parameter in pieces. Called on all ranks of its group."""
    piece: _Piece = _PIECES[parameter]
    whole = torch.empty(piece.values.numel() * comm.get_world_size(piece.group), dtype=piece.values.dtype)
    whole = whole.to(piece.values.device)
    with comm.scope("parameters"):
        comm.all_gather_into_tensor(whole, piece.values, group=piece.group)
    return whole[: piece.shape.numel()].view(piece.shape)


def take_over(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The full value for an engine that keeps it from now on: gathered where it was in pieces. Called on all ranks."""
    forget(parameter)
    if parameter not in _PIECES:
        return present(parameter)
    value = full_value(parameter)
    del _PIECES[parameter]
    return value


@contextmanager
def gathered_pieces(members: Sequence[torch.nn.Parameter], modifier_rank: int | None) -> Iterator[None]:
    """Full values of those of `members` that are in pieces; changes are kept as `GatheredParameters` says."""
    mine = [parameter for parameter in members if parameter in _PIECES]
    if not mine:
        yield
        return
    stand_ins = [parameter.data for parameter in mine]
    for parameter in mine:
        assign(parameter, full_value(parameter))
    versions = [parameter._version for parameter in mine]
    try:
        yield
        _keep(mine, versions, modifier_rank)
    finally:
        for parameter, stand_in in zip(mine, stand_ins, strict=True):
            assign(parameter, stand_in)


def _keep(members: Sequence[torch.nn.Parameter], versions: Sequence[int], modifier_rank: int | None) -> None:
    group = _PIECES[members[0]].group
    if modifier_rank is not None:
        with comm.scope("modified parameters"), torch.no_grad():
            for parameter in members:
                comm.broadcast(parameter.data, src=comm.get_global_rank(group, modifier_rank), group=group)
    else:
        agree_on_changes(members, versions, group, lambda index: f"of shape {tuple(members[index].shape)}")
    for parameter in members:
        piece: _Piece = _PIECES[parameter]
        first = comm.get_rank(group) * piece.values.numel()
        part = parameter.data.reshape(-1)[first : first + piece.values.numel()]
        piece.values[: part.numel()].copy_(part)


def agree_on_changes(
    members: Sequence[torch.nn.Parameter], versions: Sequence[int], group: ProcessGroup | None, name: Any
) -> bool:
    """Whether `members` were changed since `versions`, which must be alike on all ranks. Called on all ranks.

    Raises:
        ModelError: ranks changed a parameter differently.
    """
    changed = [i for i, parameter in enumerate(members) if parameter._version != versions[i]]
    sums = {str(i): checksum(members[i]) for i in changed}
    everyone = comm.gather_json(sums, group=group)
    if all(row == everyone[0] for row in everyone):
        return bool(changed)
    differing = sorted({int(i) for row in everyone for i in row if any(o.get(i) != row[i] for o in everyone)})
    raise ModelError(
        f"parameter {name(differing[0])} was changed differently by the ranks inside GatheredParameters; pass "
        "modifier_rank=0 to take one rank's change, or make the same change on every rank"
    )


def checksum(parameter: torch.nn.Parameter) -> int:
    """A checksum of the parameter's bytes."""
    return zlib.crc32(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
