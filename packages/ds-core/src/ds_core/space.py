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
from ds_core.holdings import Replicas
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
    """Flat groups over the ranks of a batch. Subclasses say which ranges this rank owns.

    Args:
        parameters: trainable ones, and those of group `FROZEN` that the space shall keep as well.
        replicas: the ranks of the batch, which hold every parameter that names no others.
        model: ranks that hold other parts of the model, each with the same place in its batch; None for none.
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
        replicas: Replicas,
        model: Replicas | None = None,
        source: Source | None = None,
    ) -> None:
        check_distinct(parameters)
        self.policy: SpacePolicy = policy
        self.replicas: Replicas = replicas
        self.model: Replicas | None = model
        ranks = replicas.ranks
        plans = group_layouts(parameters, shards=ranks, bucket_numel=policy.bucket_numel)
        made = [FlatGroup(m, layout, replicas=replicas, grad_dtype=policy.grad_dtype) for m, layout in plans]
        # See Note [Late groups] in ds_core.holdings.
        groups = sorted(made, key=lambda flat: (self.is_late(flat), flat.replicas.label if self.is_late(flat) else ""))
        self.flats: list[FlatGroup] = [flat for flat in groups if flat.group_index != FROZEN]
        self.frozen: list[FlatGroup] = [flat for flat in groups if flat.group_index == FROZEN]
        self.factors: tuple[float, float] = _factors(policy, ranks)
        self.exchange = Exchange(
            self.flats,
            self,
            group=replicas.group,
            ranks=ranks,
            scale=self.factors[0],
            overlap=policy.overlap and ranks > 1,
            late=frozenset(id(flat) for flat in self.flats if self.is_late(flat)),
        )
        self.followers: list[Follower] = []
        self.places: dict[int, tuple[FlatGroup, int]] = {
            id(parameter): (flat, place) for flat in groups for place, parameter in enumerate(flat.parameters)
        }
        for flat in groups:
            flat.values = self.make_values(flat)
            flat.values.fill(_shared(flat.replicas, source or present))

    def make_values(self, flat: FlatGroup) -> Values:
        """Where the working weights of `flat` live."""
        return WholeValues(flat)

    @property
    def group(self) -> ProcessGroup | None:
        """The ranks of the batch."""
        return self.replicas.group

    @property
    def rank(self) -> int:
        """This rank's place among those of the batch."""
        return self.replicas.rank

    @property
    def ranks(self) -> int:
        """Ranks of the batch."""
        return self.replicas.ranks

    def is_late(self, flat: FlatGroup) -> bool:
        """Whether ranks beyond the batch hold `flat`; see Note [Late groups] in `ds_core.holdings`."""
        return not flat.replicas.is_within(self.replicas)

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
        return flat.layout.shard_ranges(flat.replicas.rank)

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
        """Adds one number of every rank of the model, in rank order, and tells which flags any replica set.

        One all-gather of eight bytes and a byte a flag over the ranks of the batch, so that all of them have bit-equal
        results; one of eight bytes over the ranks with other parts of the model; and one for each late group.

        Args:
            value: of this rank.
            flags: a row for each of `flats`.
        """
        total, table = value, [list(row) for row in flags]
        if self.ranks > 1:
            mine = torch.tensor([flag for row in flags for flag in row], dtype=torch.uint8)
            rows = _everyone(_bytes(value, mine).to(self.flats[0].device), self.replicas)
            total = _added(rows)
            at = 8
            for number, flat in enumerate(self.flats):
                stop = at + len(table[number])
                holders = rows[list(flat.replicas.places_in(self.replicas)), at:stop]
                table[number] = holders.amax(dim=0).bool().tolist() if stop > at else []
                at = stop
        for number, flat in enumerate(self.flats):
            if self.is_late(flat):
                mine = torch.tensor(table[number], dtype=torch.uint8, device=flat.device)
                table[number] = _everyone(mine, flat.replicas).amax(dim=0).bool().tolist()
        if self.model is not None:
            mine = _bytes(total, torch.empty(0, dtype=torch.uint8))
            total = _added(_everyone(mine.to(self.flats[0].device), self.model))
        return total, table

    def sum_table_over_ranks(self, table: torch.Tensor) -> torch.Tensor:
        """Adds a table of every replica, in rank order, so that all have bit-equal results. Called on all ranks.

        Args:
            table: a row for each parameter of `flats`, in order; float64.
        """
        at = 0
        total = table.clone()
        for holders, count in _runs(self.flats):
            if holders.ranks > 1:
                rows = table[at : at + count].reshape(-1).to(self.flats[0].device)
                everyone = _everyone(rows, holders, "parameter norms")
                summed = torch.zeros_like(table[at : at + count])
                for part in everyone.to(table.device):
                    summed += part.view(summed.shape)
                total[at : at + count] = summed
            at += count
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
        handle: Any = comm.all_reduce(piece, group=flat.replicas.group, async_op=async_op)
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


def _shared(replicas: Replicas, source: Source) -> Source:
    """The first replica's values, on all of them."""
    if replicas.ranks == 1:
        return source

    def share(parameter: torch.nn.Parameter) -> torch.Tensor:
        value = source(parameter).contiguous()
        with comm.scope("initial parameters"):
            comm.broadcast(value, src=replicas.members[0], group=replicas.group)
        return value

    return share


def _bytes(value: float, flags: torch.Tensor) -> torch.Tensor:
    """Eight bytes of a float64, and then `flags`."""
    return torch.cat([torch.tensor([value], dtype=torch.float64).view(torch.uint8), flags])


def _everyone(mine: torch.Tensor, replicas: Replicas, scope: str = "gradient norm") -> torch.Tensor:
    """What every one of `replicas` has, in host memory, a row each."""
    out = torch.empty(replicas.ranks * mine.numel(), dtype=mine.dtype, device=mine.device)
    with comm.scope(scope):
        comm.all_gather_into_tensor(out, mine, group=replicas.group)
    return out.cpu().view(replicas.ranks, -1)


def _added(rows: torch.Tensor) -> float:
    """The sum of the numbers that rows begin with, in order."""
    total = 0.0
    for row in rows:
        total += float(row[:8].clone().view(torch.float64).item())
    return total


def _runs(flats: Sequence[FlatGroup]) -> list[tuple[Replicas, int]]:
    """Neighbouring groups of the same replicas, and how many parameters they have together."""
    found: list[tuple[Replicas, int]] = []
    for flat in flats:
        if found and found[-1][0].members == flat.replicas.members:
            found[-1] = (flat.replicas, found[-1][1] + len(flat.parameters))
        else:
            found.append((flat.replicas, len(flat.parameters)))
    return found
