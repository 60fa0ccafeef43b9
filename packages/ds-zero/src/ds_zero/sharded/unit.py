"""A unit at run time: shards that become full parameters and go again.

SHARDED --issue--> GATHERING --wait--> GATHERED --release--> SHARDED
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_core import buffers, comm
from ds_core.errors import ModelError
from ds_core.placeholder import show

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.flat import FlatGroup
    from ds_core.units import Unit
    from ds_zero.sharded.values import ShardedValues

__all__ = ["GatherUnit", "UnitState"]


class UnitState(enum.Enum):
    """Where a unit's full values are."""

    SHARDED = "sharded"
    GATHERING = "gathering"
    GATHERED = "gathered"


class _Member(NamedTuple):
    """A parameter of the unit, its stand-in, and where it lies in the unit's buffers."""

    name: str
    parameter: torch.nn.Parameter
    stand_in: torch.Tensor
    piece: int
    start: int
    stop: int

    def is_untouched(self) -> bool:
        """Whether the parameter still shows its stand-in, and that still holds what it was made with."""
        if self.parameter.data_ptr() != self.stand_in.data_ptr():
            return False
        if self.stand_in.device.type != "cpu" or not self.stand_in.is_floating_point():
            return True  # a look would wait for the device
        first = self.stand_in.as_strided((), ())
        return bool(first.isnan())


class GatherUnit:
    """Full buffers of one unit's buckets while they are needed.

    Attributes:
        plan: names, path and size.
        state: see the module's docstring.
        fulls: per bucket, the values of all ranks, 1-D; empty unless gathering or gathered.
        parameters: its parameters.
        depth: how many forwards of its module are running.
        held: how many contexts keep it whole, on all ranks alike.
    """

    def __init__(
        self,
        plan: Unit,
        pieces: list[tuple[FlatGroup, int]],
        groups: Mapping[tuple[int, ...], ProcessGroup | None],
        *,
        by_sum: bool = False,
    ) -> None:
        self.plan: Unit = plan
        self.index: int = plan.index
        self.state: UnitState = UnitState.SHARDED
        self.fulls: list[torch.Tensor] = []
        self.depth: int = 0
        self.held: int = 0
        self._pieces = pieces
        self._groups = groups
        self._by_sum = by_sum
        self._handles: list[Any] = []
        self._versions: list[int] = []
        self._members: list[_Member] = []
        for number, (flat, index) in enumerate(pieces):
            bucket = flat.layout.buckets[index]
            for place in range(bucket.first, bucket.last):
                slot, parameter = flat.layout.slots[place], flat.parameters[place]
                if slot.numel:
                    stand_in = parameter.data
                    start, stop = slot.start - bucket.start, slot.stop - bucket.start
                    self._members.append(_Member(slot.name, parameter, stand_in, number, start, stop))
        self.numel: int = sum(flat.layout.buckets[index].numel for flat, index in pieces)

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.plan.title

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """Its parameters, in order."""
        return [member.parameter for member in self._members]

    @property
    def trainable(self) -> list[tuple[FlatGroup, int]]:
        """Buckets whose gradients are collected."""
        return [(flat, index) for flat, index in self._pieces if not flat.is_frozen]

    def issue(self) -> None:
        """Starts to gather. Called on all ranks in one order; the result is usable after `wait`."""
        self.fulls, self._handles = self._gather()
        self.state = UnitState.GATHERING

    def join(self) -> None:
        """Takes part in a gather whose result this rank does not need."""
        fulls, handles = self._gather()
        for handle in handles:
            handle.wait()
        for full in fulls:
            buffers.give(full)

    def _gather(self) -> tuple[list[torch.Tensor], list[Any]]:
        fulls: list[torch.Tensor] = []
        handles: list[Any] = []
        with comm.scope("parameters"):
            for flat, index in self._pieces:
                bucket, group = flat.layout.buckets[index], self._groups[flat.replicas.members]
                values: ShardedValues = flat.values  # type: ignore[assignment]
                shard = values.shard(index, ahead=True)
                full = buffers.take(bucket.numel, flat.dtype, flat.device)
                if self._by_sum:
                    full.zero_()
                lent = values.shards[index] is None
                if self._by_sum or lent or shard.device != full.device:
                    at = values.held()[index].start - bucket.start
                    # A shard of a file is in a buffer that the next one takes.
                    shard = full[at : at + shard.numel()].copy_(shard, non_blocking=not lent)
                if self._by_sum:
                    handles.append(comm.all_reduce(full, group=group, async_op=True))
                else:
                    handles.append(comm.all_gather_into_tensor(full, shard, group=group, async_op=True))
                fulls.append(full)
        return fulls, handles

    def wait(self) -> None:
        """Waits for the gather and makes every parameter a view of its values.

        Raises:
            ModelError: a parameter was given other values while it was sharded.
        """
        if self.state is UnitState.GATHERED:
            return
        for handle in self._handles:
            handle.wait()
        self._handles = []
        self._versions = []
        for member in self._members:
            parameter = member.parameter
            if not member.is_untouched():
                raise ModelError(
                    f"parameter {member.name!r} was changed while it is sharded (zero_optimization.stage 3), and the "
                    "change would be lost; change parameters inside ds_zero.GatheredParameters(..., modifier_rank=0), "
                    "or load weights with engine.load_module_state_dict"
                )
            show(parameter, self.fulls[member.piece][member.start : member.stop].view(member.stand_in.shape))
            self._versions.append(parameter._version)
        self.state = UnitState.GATHERED

    def changed(self) -> list[int]:
        """Places of members that were written to since `wait`."""
        pairs = zip(self._members, self._versions, strict=True)
        return [i for i, (member, version) in enumerate(pairs) if member.parameter._version != version]

    def accept(self) -> None:
        """What was written to parameters since `wait` is known of."""
        self._versions = [member.parameter._version for member in self._members]

    def release(self, *, check: bool = True) -> None:
        """Drops the full values; parameters become stand-ins.

        Raises:
            ModelError: `check`, and a parameter was changed in place since the gather; that would be lost.
        """
        if self.state is UnitState.GATHERING:
            for handle in self._handles:
                handle.wait()
            self._handles = []
        elif self.state is UnitState.GATHERED:
            changed = self.changed() if check else []
            for member in self._members:
                show(member.parameter, member.stand_in)
            if changed:
                self.fulls, self.state = [], UnitState.SHARDED
                name = self._members[changed[0]].name
                raise ModelError(
                    f"parameter {name!r} was changed in place outside ds_zero.GatheredParameters; at "
                    "zero_optimization.stage 3 the change would be lost. Do it inside "
                    "`with ds_zero.GatheredParameters(parameter, modifier_rank=0):`"
                )
        for full in self.fulls:
            buffers.give(full)
        self.fulls, self._handles = [], []
        self.state = UnitState.SHARDED

    def keep(self) -> None:
        """Copies this rank's part of the full values back into its shards."""
        for full, (flat, index) in zip(self.fulls, self._pieces, strict=True):
            values: ShardedValues = flat.values  # type: ignore[assignment]
            held, bucket = values.held()[index], flat.layout.buckets[index]
            values.put(held, full[held.start - bucket.start : held.stop - bucket.start])

    def piece_of(self, parameter: torch.Tensor) -> int:
        """The number of the buffer that holds one of its parameters."""
        return next(member.piece for member in self._members if member.parameter is parameter)

    def storages(self) -> list[int]:
        """What identifies the memory of each full buffer while it lives, in order."""
        return [full.untyped_storage()._cdata for full in self.fulls]
