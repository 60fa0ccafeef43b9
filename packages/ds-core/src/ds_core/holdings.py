"""Holdings: which ranks hold the same values of a parameter, and what part of a larger tensor these are.

By default every rank of the batch holds every parameter, whole. A transform that leaves a rank with something else
(some of the experts, one stage of a pipeline, a slice of a matrix) says so in ``Build.holdings``, and what follows from
it is the core's: with whom gradients are added, over whom optimizer state is sharded, who counts in the norm, what a
checkpoint calls it.

Note [Sums and means]
    A gradient is added over the parameter's replicas and divided by the number of ranks of the whole batch, whoever
    holds it: a loss is the mean over all ranks' samples. An expert that serves two ranks has their sum already.

Note [Late groups]
    Replicas may reach beyond the ranks of one batch: weights tied between stages. Their gradients meet once, at the end
    of a step, never while a backward runs, for another stage may be in another one; and where a rank is in several such
    groups all ranks go through them in the order of their labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ds_core.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup

    from ds_core.build import Build

__all__ = ["Holding", "Replicas", "keep_slice", "share_names", "split_over"]


@dataclass(frozen=True, slots=True)
class Replicas:
    """Ranks that hold the same values.

    Attributes:
        members: world ranks, in the order of the group; the first is where initial values come from.
        rank: this rank's place among them.
        group: None in a job without a process group.
        label: what reports call the group.
    """

    members: tuple[int, ...]
    rank: int
    group: ProcessGroup | None
    label: str

    @property
    def ranks(self) -> int:
        """How many."""
        return len(self.members)

    def is_within(self, other: Replicas) -> bool:
        """Whether all members are of `other`, too."""
        return set(self.members) <= set(other.members)

    def places_in(self, other: Replicas) -> tuple[int, ...]:
        """Where the members come in `other`, those of them that do."""
        return tuple(place for place, member in enumerate(other.members) if member in set(self.members))


class Holding(NamedTuple):
    """How this rank holds a parameter.

    Attributes:
        replicas: who holds the same.
        shape: of the logical tensor, where the parameter is part of one; None: it is all of it.
        start: flat element of the logical tensor at which it begins.
        siblings: ranks that together hold the logical tensor, in its order, each an equal share; without a shape,
            ranks that hold other parameters in the places of these, under names of their own.
    """

    replicas: Replicas
    shape: tuple[int, ...] | None = None
    start: int = 0
    siblings: Replicas | None = None


def split_over(build: Build, parameters: Iterable[torch.nn.Parameter], axis: str, *, sliced: bool = True) -> None:
    """Notes that ranks along `axis` hold different values of `parameters`.

    Args:
        build: its mesh has the axis, which divides the batch.
        parameters: of this rank, cut already.
        axis: ranks that agree in all other batch axes, and differ here, hold different ones.
        sliced: each parameter is one of equal slices along dim 0, in the order of ranks; else it is whole, and only
            ranks with this place on `axis` have one of its name.

    Raises:
        ModelError: the axis is not one of the batch.
    """
    mesh = build.mesh
    if axis not in mesh.batch_axes:
        raise ModelError(f"parameters cannot be split over {axis!r}: the batch is divided over {mesh.batch_axes}")
    replicas = mesh.replicas(*(name for name in mesh.batch_axes if name != axis))
    siblings = mesh.replicas(axis)
    for parameter in parameters:
        if sliced and parameter.dim():
            shape = (parameter.shape[0] * mesh.size(axis), *parameter.shape[1:])
            build.holdings[parameter] = Holding(replicas, shape, mesh.rank(axis) * math.prod(parameter.shape), siblings)
        else:
            build.holdings[parameter] = Holding(replicas, siblings=siblings)


def keep_slice(build: Build, parameter: torch.nn.Parameter, axis: str) -> None:
    """Leaves `parameter` with this rank's slice of its dim 0, and notes that the others are along `axis`.

    Called on all ranks, in one order, for values that are in pieces are gathered first. The Parameter object stays.

    Raises:
        ModelError: dim 0 does not divide evenly over the axis.
    """
    from ds_core.placeholder import assign

    ranks, rows = build.mesh.size(axis), parameter.shape[0]
    if rows % ranks:
        raise ModelError(
            f"a parameter of shape {tuple(parameter.shape)} cannot be sliced over {ranks} ranks along {axis!r}: {rows} "
            f"is not a multiple of {ranks}"
        )
    each, first = rows // ranks, build.mesh.rank(axis) * (rows // ranks)
    value = build.full(parameter).detach()
    assign(parameter, value[first : first + each].clone())
    split_over(build, [parameter], axis)


def share_names(build: Build, module: torch.nn.Module, group: ProcessGroup | None) -> None:
    """Tells the ranks of `group` what others of them hold, into ``build.elsewhere``. Called on all ranks of the group.

    Args:
        build: takes what is not in `module`.
        module: what this rank keeps; its names are the model's.
        group: ranks among which the model is divided.
    """
    from ds_core import comm
    from ds_core.parameters import persistent_buffers

    mine = {name for name, _ in (*module.named_parameters(), *persistent_buffers(module))}
    everyone = comm.gather_json(sorted(mine), group=group)
    build.elsewhere |= {name for names in everyone for name in names} - mine
