"""The space of stage 3: working values, gradients and optimizer state are all in shards.

Source: Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020), section 5.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.layout import intersect
from ds_core.units import Unit
from ds_core.values import Values
from ds_zero.sharded.control import Control, beside
from ds_zero.sharded.coordinator import PHASES, Coordinator, Limits
from ds_zero.sharded.hooks import ModuleHooks
from ds_zero.sharded.unit import GatherUnit
from ds_zero.sharded.values import ShardedValues
from ds_zero.space import ShardedSpace

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from ds_core.flat import FlatGroup, NamedParameter
    from ds_zero.offload.shelf import Shelf

__all__ = ["PartitionedSpace"]


class PartitionedSpace(ShardedSpace):
    """Stage 3: rank r holds the r-th part of every bucket, and whole buckets only while they are used.

    Args:
        parameters: all of the model's, frozen ones too.
        root: the module they belong to.
        units: the plan they were numbered by.
        limits: how much is gathered at a time.
        whole: units that stay gathered.
        shelf: where shards live; closed with the space.
        gather_by_sum: gather with all-reduces.
    """

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        *,
        root: torch.nn.Module,
        units: Sequence[Unit],
        limits: Limits,
        whole: frozenset[int],
        shelf: Shelf,
        gather_by_sum: bool = False,
        **arguments: Any,
    ) -> None:
        self._whole = whole
        self.shelf: Shelf = shelf
        self._is_planned = False
        self._gather_by_sum = gather_by_sum
        super().__init__(parameters, **arguments)
        # Ranks may gather and reduce in different orders relative to each other, so each has a group of its own.
        holders = {flat.replicas.members: flat.replicas.group for flat in self.groups}
        self.gather_groups: dict[tuple[int, ...], ProcessGroup | None] = {
            members: beside(group, "gathers") for members, group in holders.items()
        }
        self.units: list[GatherUnit] = self._make_units(units)
        titles = [unit.title for unit in units]
        self.coordinator = Coordinator(self.units, Control(self.group, self.ranks, titles, PHASES), limits)
        unit_of = {id(parameter): unit for unit in self.units for parameter in unit.parameters}
        self.hooks = ModuleHooks(root, self.coordinator, unit_of)
        self.unit_of: dict[int, GatherUnit] = unit_of
        by_bucket = {(id(flat), index): unit for unit in self.units for flat, index in unit.trainable}

        def complete(flat: FlatGroup, index: int) -> None:
            unit = by_bucket.get((id(flat), index))
            if unit is not None:
                self.coordinator.completed(unit)

        self.exchange.on_complete = complete
        self.exchange.may_wait = lambda: self.coordinator.is_agreed

    def make_values(self, flat: FlatGroup) -> Values:
        """Shards, and whole buckets for units that stay gathered."""
        if not self._is_planned:
            self._is_planned = True
            self.shelf.plan(self.groups, self._whole)
        return ShardedValues(flat, whole=self._whole, shelf=self.shelf)

    def shards_in_memory(self) -> Iterator[tuple[torch.nn.Parameter, torch.Tensor]]:
        """Parameters with this rank's part of each, 1-D, empty where it has none; without those kept in files."""
        for flat in self.groups:
            for parameter, slot in zip(flat.parameters, flat.layout.slots, strict=True):
                bucket = flat.layout.buckets[flat.layout.bucket_at(slot.start)]
                own = bucket.shard(flat.replicas.rank, flat.replicas.ranks)
                mine = intersect(own, slot.start, slot.stop)
                if mine is None or not slot.numel:
                    yield parameter, torch.empty(0, dtype=flat.dtype, device=flat.device)
                elif flat.values.home(mine) is not None:
                    yield parameter, flat.values.of(mine)

    def _make_units(self, units: Sequence[Unit]) -> list[GatherUnit]:
        pieces: dict[int, list[tuple[FlatGroup, int]]] = {}
        for flat in self.groups:
            for index, bucket in enumerate(flat.layout.buckets):
                pieces.setdefault(bucket.unit, []).append((flat, index))
        return [
            GatherUnit(unit, pieces[unit.index], self.gather_groups, by_sum=self._gather_by_sum)
            for unit in units
            if unit.index in pieces and unit.index not in self._whole
        ]

    def publish(self) -> None:
        """Gathers what stays whole; the rest is gathered when it is used."""
        self._share_wholes(self.flats)

    def publish_all(self) -> None:
        """Gathers what stays whole, frozen or not."""
        self._share_wholes(self.groups)

    def _share_wholes(self, groups: Sequence[FlatGroup]) -> None:
        with comm.scope("parameters"):
            for flat in groups:
                values: ShardedValues = flat.values  # type: ignore[assignment]
                values.gather_whole(self.share)

    @contextmanager
    def gathered(self, units: Sequence[GatherUnit], *, keep: Callable[[], bool] = lambda: False) -> Iterator[None]:
        """A context in which `units` are whole. Called on all ranks.

        Args:
            units: in one order on all ranks.
            keep: asked on the way out: copy the full values back into the shards?
        """
        held = []
        try:
            for unit in units:
                self.coordinator.need(unit)
                unit.held += 1
                held.append(unit)
            yield
            if keep():
                for unit in held:
                    unit.keep()
        finally:
            for unit in held:
                unit.held -= 1
                self.coordinator.let_go(unit)

    def close(self) -> None:
        """Removes hooks and leaves ordinary parameters. Called on all ranks."""
        self.hooks.close()
        self.coordinator.abort()
        super().close()
        self.shelf.close()
