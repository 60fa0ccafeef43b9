"""Whole tensors of a model that ranks divide: slices joined, and what other ranks hold sent to the first.

Note [In step]
    Ranks walk through their own groups of tensors in one order, for those that shard a group gather it together. Where
    the first rank lacks a tensor, the first of its holders sends it in the step in which it has it whole. So one group
    is in memory at a time, on every rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_core import comm
from ds_core.checkpoint.storage.safetensors_file import DTYPES, NAMES
from ds_core.holdings import Holding

if TYPE_CHECKING:
    from ds_core.engine_api import EngineApi

__all__ = ["Foreign", "cut", "foreign_tensors", "is_divided", "joined", "pass_on"]

Taker = Callable[[str, torch.Tensor], Any]


class Foreign(NamedTuple):
    """A tensor that the first rank gets from another.

    Attributes:
        name: in the model.
        dtype: it is sent in.
        shape: of all of it.
        owner: world rank that sends it.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    owner: int


def is_divided(engine: EngineApi) -> bool:
    """Whether ranks hold different parts of the model; the same on all ranks."""
    return bool(engine.holdings) or engine.mesh.size(*engine.mesh.model_axes) > 1


def joined(values: torch.Tensor, holding: Holding | None) -> torch.Tensor:
    """The logical tensor that `values` is a slice of. Called on all ranks that hold slices of it."""
    if holding is None or holding.shape is None or holding.siblings is None or holding.siblings.ranks == 1:
        return values
    whole = torch.empty(holding.shape, dtype=values.dtype, device=values.device)
    with comm.scope("whole weights"):
        comm.all_gather_into_tensor(whole.view(-1), values.contiguous().view(-1), group=holding.siblings.group)
    return whole


def cut(whole: torch.Tensor, holding: Holding | None, shape: Sequence[int]) -> torch.Tensor:
    """This rank's slice of a logical tensor; `whole` itself where it is no such tensor."""
    if holding is None or holding.shape is None or tuple(whole.shape) != holding.shape:
        return whole
    numel = torch.Size(shape).numel()
    return whole.reshape(-1)[holding.start : holding.start + numel].view(tuple(shape))


def foreign_tensors(
    engine: EngineApi, steps: Sequence[Mapping[str, torch.Tensor]], dtype: torch.dtype | None
) -> list[list[Foreign]]:
    """What the first rank lacks, by the step in which it is sent. Called on all ranks; the same on all of them.

    Args:
        engine: whose tensors they are.
        steps: this rank's tensors in the order it has them whole.
        dtype: of floating-point tensors as they are wanted; None: their own.
    """
    mine = []
    for tensors in steps:
        rows = []
        for name, tensor in tensors.items():
            holding = engine.holdings.get(tensor) if isinstance(tensor, torch.nn.Parameter) else None
            shape = tensor.shape if holding is None or holding.shape is None else holding.shape
            wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            rows.append([name, NAMES[wanted], list(shape)])
        mine.append(rows)
    everyone = comm.gather_json(mine)
    seen = {name for rows in everyone[0] for name, _, _ in rows}
    found: list[list[Foreign]] = [[] for _ in range(max(len(each) for each in everyone))]
    for owner, each in enumerate(everyone):
        for step, rows in enumerate(each):
            for name, kind, shape in rows:
                if name not in seen:
                    seen.add(name)
                    found[step].append(Foreign(name, DTYPES[kind], tuple(shape), owner))
    return found


def pass_on(foreign: Sequence[Foreign], whole: Mapping[str, torch.Tensor], take: Taker, device: torch.device) -> None:
    """Sends what this rank owns of a step to the first rank, which takes it. Called on all ranks.

    Args:
        foreign: of this step.
        whole: this rank's tensors, whole.
        take: on the first rank, called with each.
        device: where tensors are received.
    """
    rank = comm.get_rank()
    for item in foreign:
        with comm.scope("whole weights"):
            if rank == item.owner:
                comm.send(whole[item.name].detach().to(item.dtype).contiguous(), dst=0)
            elif rank == 0:
                values = torch.empty(item.shape, dtype=item.dtype, device=device)
                comm.recv(values, src=item.owner)
                take(item.name, values)
