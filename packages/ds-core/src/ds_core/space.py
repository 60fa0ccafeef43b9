"""The update space: flat groups of parameters and gradients, and which of their elements this rank updates.

A space answers three questions: which ranges does this rank own, how do gradients of all ranks come together there,
how do updated parameters get back to every rank. `ReplicatedSpace` owns everything (stage 0); sharded spaces come from
wheels through ``Build.space``.

The optimizer sees a space through three tensors, each 1-D over a range of a `FlatGroup`: ``flat.working(range)``, the
values the module computes with; ``flat.grads(range)``, gradients of all ranks; and the master (`ds_core.masters`).
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ds_core import comm
from ds_core.exchange import Exchange, Reduced
from ds_core.flat import FROZEN, FlatGroup, NamedParameter, check_distinct, group_layouts
from ds_core.layout import Range
from ds_core.values import Source, Values, WholeValues, present

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Follower", "ReplicatedSpace", "SpacePolicy", "UpdateSpace"]


Follower = Callable[[FlatGroup, Range, torch.Tensor], None]


class SpacePolicy(NamedTuple):
    """How gradients are stored and come together.

    Attributes:
        bucket_numel: elements per collective.
        grad_dtype: dtype gradients accumulate in; None keeps the parameter's.
        mean: average over ranks (else sum).
        prescale: divide by the number of ranks before the reduction rather than after it.
        predivide: divide by this before the reduction, and by the rest after it.
        overlap: reduce each bucket while backward goes on, rather than all at the end.
        every_backward: reduce in every backward, so that only this rank's share is kept between them; else at the last.
    """

    bucket_numel: int = 500_000_000
    grad_dtype: torch.dtype | None = None
    mean: bool = True
    prescale: bool = False
    predivide: float = 1.0
    overlap: bool = False
    every_backward: bool = False


class UpdateSpace(abc.ABC):
    """Flat groups over a data-parallel process group. Subclasses say which ranges this rank owns.

    Args:
        parameters: trainable ones, and those of group `FROZEN` that the space shall keep as well.
        source: where their values come from; None: they are in ``parameter.data``.

    Attributes:
        flats: trainable groups.
        frozen: groups that no optimizer updates; empty where a space leaves such parameters alone.
        exchange: brings gradients together.
        factors: what gradients are multiplied by before they are added over ranks, and after.
        followers: told when working values were replaced by hand, with the group, the range and the values before.
        places: group and slot index of each parameter, by id.
    """

    def __init__(
        self,
        parameters: Sequence[NamedParameter],
        *,
        policy: SpacePolicy,
        group: ProcessGroup | None,
        rank: int,
        ranks: int,
        source: Source | None = None,
    ) -> None:
        check_distinct(parameters)
        self.policy: SpacePolicy = policy
        self.group: ProcessGroup | None = group
        self.rank: int = rank
        self.ranks: int = ranks
        plans = group_layouts(parameters, shards=ranks, bucket_numel=policy.bucket_numel)
        groups = [FlatGroup(members, layout, grad_dtype=policy.grad_dtype) for members, layout in plans]
        self.flats: list[FlatGroup] = [flat for flat in groups if flat.group_index != FROZEN]
        self.frozen: list[FlatGroup] = [flat for flat in groups if flat.group_index == FROZEN]
        self.factors: tuple[float, float] = _factors(policy, ranks)
        self.exchange = Exchange(
            self.flats, self, ranks=ranks, group=group, scale=self.factors[0], overlap=policy.overlap and ranks > 1
        )
        self.followers: list[Follower] = []
        self.places: dict[int, tuple[FlatGroup, int]] = {
            id(parameter): (flat, place) for flat in groups for place, parameter in enumerate(flat.parameters)
        }
        for flat in groups:
            flat.values = self.make_values(flat)
            flat.values.fill(self._shared(source or present))

    def make_values(self, flat: FlatGroup) -> Values:
        """Where the working weights of `flat` live."""
        return WholeValues(flat)

    def _shared(self, source: Source) -> Source:
        """The first rank's values, on every rank."""
        if self.ranks == 1:
            return source
        first = comm.get_global_rank(self.group, 0)

        def share(parameter: torch.nn.Parameter) -> torch.Tensor:
            value = source(parameter).contiguous()
            with comm.scope("initial parameters"):
                comm.broadcast(value, src=first, group=self.group)
            return value

        return share

    @property
    def groups(self) -> list[FlatGroup]:
        """All groups, trainable and frozen."""
        return [*self.flats, *self.frozen]

    @abc.abstractmethod
    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """Ranges this rank's optimizer updates, each within a bucket."""

    @property
    def is_sharded(self) -> bool:
        """True when some elements are updated by other ranks only."""
        return any(self.owned(flat) != flat.layout.whole() for flat in self.flats)

    def measured(self, flat: FlatGroup) -> tuple[Range, ...]:
        """Ranges whose gradient norm this rank adds up; over all ranks they cover everything once."""
        return flat.layout.shard_ranges(self.rank)

    def reduce(self) -> float:
        """Brings together what has not met yet, at least on the owned ranges. Called on all ranks.

        Returns:
            The factor a reduced element must still be multiplied by to be the mean (or sum) over ranks.
        """
        self.exchange.finish()
        return self.factors[1]

    @abc.abstractmethod
    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor, async_op: bool) -> Reduced:
        """Sums `piece`, the gradients of bucket `index`, over ranks, at least on this rank's ranges."""

    @abc.abstractmethod
    def publish(self) -> None:
        """Makes every rank's working parameters equal to what their owners computed."""

    def publish_all(self) -> None:
        """As `publish`, for values that were loaded: frozen ones too."""
        self.publish()

    def sum_over_ranks(self, value: float, flags: Sequence[Sequence[bool]]) -> tuple[float, list[list[bool]]]:
        """Adds one number of every rank, in rank order, and tells which flags any rank set.

        One all-gather of eight bytes and a byte a flag, so that every rank has bit-equal results.
        """
        if self.ranks == 1:
            return value, [list(row) for row in flags]
        lengths = [len(row) for row in flags]
        mine = torch.tensor([flag for row in flags for flag in row], dtype=torch.uint8)
        number = torch.tensor([value], dtype=torch.float64).view(torch.uint8)
        payload = torch.cat([number, mine]).to(self.flats[0].device)
        everyone = torch.empty(self.ranks * payload.numel(), dtype=torch.uint8, device=payload.device)
        with comm.scope("gradient norm"):
            comm.all_gather_into_tensor(everyone, payload, group=self.group)
        table = everyone.cpu().view(self.ranks, -1)
        total = 0.0
        for number_bytes in table[:, :8]:
            total += float(number_bytes.clone().view(torch.float64).item())
        any_set = table[:, 8:].amax(dim=0).bool().tolist() if mine.numel() else []
        rows, at = [], 0
        for length in lengths:
            rows.append(any_set[at : at + length])
            at += length
        return total, rows

    def sum_table_over_ranks(self, table: torch.Tensor) -> torch.Tensor:
        """Adds a table of every rank, in rank order, so that every rank has bit-equal results. Called on all ranks.

        Args:
            table: of one shape on all ranks.
        """
        if self.ranks == 1:
            return table
        mine = table.reshape(-1).to(self.flats[0].device)
        everyone = mine.new_empty(self.ranks * mine.numel())
        with comm.scope("parameter norms"):
            comm.all_gather_into_tensor(everyone, mine, group=self.group)
        total = torch.zeros_like(table)
        for part in everyone.to(table.device).view(self.ranks, *table.shape):
            total += part
        return total

    def replaced(self, flat: FlatGroup, span: Range, before: torch.Tensor) -> None:
        """Tells whoever keeps finer copies that the working values of `span`, formerly `before`, were replaced."""
        for follow in self.followers:
            follow(flat, span, before)

    def zero_grad(self) -> None:
        """Forgets accumulated gradients."""
        self.exchange.reset()
        for flat in self.flats:
            flat.zero_grad()

    def close(self) -> None:
        """Removes hooks and gives memory back; parameters keep their full values. Called on all ranks."""
        for flat in self.groups:
            flat.close()


class ReplicatedSpace(UpdateSpace):
    """Every rank owns everything: gradients are all-reduced, every rank makes the same update."""

    def owned(self, flat: FlatGroup) -> tuple[Range, ...]:
        """All of it."""
        return flat.layout.whole()

    def reduce_bucket(self, flat: FlatGroup, index: int, piece: torch.Tensor, async_op: bool) -> Reduced:
        """All-reduces the bucket."""
        handle: Any = comm.all_reduce(piece, group=self.group, async_op=async_op)
        return Reduced(piece, flat.layout.buckets[index].start, handle)

    def publish(self) -> None:
        """Nothing to share: every rank computed everything."""


def _factors(policy: SpacePolicy, ranks: int) -> tuple[float, float]:
    """What gradients are multiplied by before they are added over ranks, and after."""
    if policy.mean and policy.prescale:
        return 1.0 / ranks, 1.0
    if policy.mean:
        return 1.0 / policy.predivide, policy.predivide / ranks
    return 1.0 / policy.predivide, policy.predivide
