"""The mesh: ranks arranged along named axes, planned by arithmetic and carried out as process groups.

`plan` is pure: it decides who is where and prints it, with no process group. `Mesh` makes the groups, with torch's
DeviceMesh underneath.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ds_core.errors import CommError, ConfigError, did_you_mean
from ds_core.holdings import Replicas
from ds_core.hooks import AxisRequest

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DATA_AXIS", "DATA_PLACE", "Axis", "Mesh", "MeshPlan", "plan"]

DATA_AXIS = "data"
DATA_PLACE = 200


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a planned mesh; whether its ranks work on different samples."""

    name: str
    size: int
    splits_batch: bool = False


@dataclass(frozen=True, slots=True)
class MeshPlan:
    """Axes in order, the first varying slowest with the rank. The product of the sizes is the world size."""

    axes: tuple[Axis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Axis names in order."""
        return tuple(axis.name for axis in self.axes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Axis sizes in order."""
        return tuple(axis.size for axis in self.axes)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Axes whose ranks work on different samples, in order."""
        return tuple(axis.name for axis in self.axes if axis.splits_batch)

    @property
    def model_axes(self) -> tuple[str, ...]:
        """Axes whose ranks work on the same samples, in order."""
        return tuple(axis.name for axis in self.axes if not axis.splits_batch)

    @property
    def world_size(self) -> int:
        """Ranks in the mesh."""
        return math.prod(self.shape)

    def size(self, *names: str) -> int:
        """Ranks along the axes together; an axis the plan does not have counts 1."""
        sizes = {axis.name: axis.size for axis in self.axes}
        return math.prod(sizes.get(name, 1) for name in names)

    def coords(self, rank: int) -> dict[str, int]:
        """The place of `rank` on each axis."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank {rank} is outside a mesh of {self.world_size} ranks")
        found: dict[str, int] = {}
        for axis in reversed(self.axes):
            rank, found[axis.name] = divmod(rank, axis.size)
        return {axis.name: found[axis.name] for axis in self.axes}

    def rank(self, **coords: int) -> int:
        """The rank at these coordinates; axes left out count 0."""
        for name in coords:
            if name not in self.names:
                raise ValueError(f"the mesh has no axis {name!r}; it has {', '.join(self.names)}")
        rank = 0
        for axis in self.axes:
            at = coords.get(axis.name, 0)
            if not 0 <= at < axis.size:
                raise ValueError(f"{axis.name}={at} is outside axis {axis.name!r} of size {axis.size}")
            rank = rank * axis.size + at
        return rank

    def along(self, rank: int, *names: str) -> int:
        """The place of `rank` in its group along the axes together, counted in mesh order; absent axes count 0."""
        position, coords = 0, self.coords(rank)
        for axis in self.axes:
            if axis.name in names:
                position = position * axis.size + coords[axis.name]
        return position

    def groups(self, *names: str) -> tuple[tuple[int, ...], ...]:
        """The groups along the axes together: ranks that differ only there. Each rank is in exactly one."""
        members: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.world_size):
            coords = self.coords(rank)
            members.setdefault(tuple(at for name, at in coords.items() if name not in names), []).append(rank)
        return tuple(tuple(group) for group in members.values())

    def __str__(self) -> str:
        shape = " x ".join(f"{axis.name} {axis.size}" for axis in self.axes)
        lines = [f"{shape} = {self.world_size} rank{'s' if self.world_size > 1 else ''}"]
        for axis in self.axes:
            if axis.size > 1:
                groups = self.groups(axis.name)
                shown = " ".join("[" + ",".join(str(rank) for rank in group) + "]" for group in groups[:8])
                lines.append(f"  {axis.name}: {shown}" + (f" and {len(groups) - 8} more" if len(groups) > 8 else ""))
        return "\n".join(lines)


def plan(axes: Sequence[AxisRequest], world_size: int) -> MeshPlan:
    """Arrange `world_size` ranks along the axes asked for; the data axis takes what is left.

    Args:
        axes: requests, in any order; the same axis may be asked for twice with the same size. A request for the data
            axis fixes its size.
        world_size: number of ranks.

    Raises:
        ConfigError: a size below 1, two sizes or places for one axis, or sizes that do not multiply out.
    """
    if world_size < 1:
        raise ConfigError(f"a mesh needs at least one rank, got world size {world_size}")
    wanted = _merged(axes)
    others = [request for request in wanted.values() if request.name != DATA_AXIS]
    product = math.prod(request.size for request in others)
    sizes = " x ".join(f"{request.name} {request.size}" for request in sorted(others, key=_order)) or "nothing"
    if world_size % product:
        raise ConfigError(
            f"the mesh does not fit the job: {sizes} = {product}, which does not divide {world_size} ranks "
            f"({world_size} / {product} = {world_size / product:.2f}); start a multiple of {product} ranks or change "
            "the sizes of these axes"
        )
    left = world_size // product
    data = wanted.get(DATA_AXIS)
    if data is not None and data.size != left:
        raise ConfigError(
            f"the mesh does not fit the job: data {data.size} x {sizes} = {data.size * product}, but there are "
            f"{world_size} ranks; data must be {world_size} / {product} = {left}, or leave it out"
        )
    place = DATA_PLACE if data is None else data.place
    ordered = sorted([*others, AxisRequest(DATA_AXIS, left, place, splits_batch=True)], key=_order)
    return MeshPlan(tuple(Axis(request.name, request.size, request.splits_batch) for request in ordered))


def _order(request: AxisRequest) -> tuple[int, str]:
    return request.place, request.name


def _merged(axes: Iterable[AxisRequest]) -> dict[str, AxisRequest]:
    wanted: dict[str, AxisRequest] = {}
    for request in axes:
        if request.size < 1:
            raise ConfigError(f"mesh axis {request.name!r} must have at least 1 rank, got {request.size}")
        known = wanted.setdefault(request.name, request)
        if known != request:
            raise ConfigError(
                f"mesh axis {request.name!r} is asked for twice: size {known.size} at place {known.place}, and size "
                f"{request.size} at place {request.place}; both must be the same"
            )
    return wanted


class Mesh:
    """The planned mesh with its process groups. Made on all ranks, with the same plan.

    Args:
        plan: who is where.
        device_type: torch device type the groups serve.

    Raises:
        CommError: the plan has more than one rank and the process group does not have as many.
    """

    def __init__(self, plan: MeshPlan, device_type: str) -> None:
        from ds_core import comm

        self.plan: MeshPlan = plan
        self.device_type: str = device_type
        self._groups: dict[tuple[str, ...], ProcessGroup] = {}
        self._device_mesh: DeviceMesh | None = None
        world = comm.get_world_size()
        if world != plan.world_size:
            raise CommError(
                f"the mesh is planned for {plan.world_size} ranks ({plan.axes}), but the process group has {world}; "
                "call ds_core.comm.init_distributed() first, or plan for the ranks there are"
            )
        self._rank: int = comm.get_rank()
        if comm.is_initialized():
            from torch.distributed.device_mesh import init_device_mesh

            self._device_mesh = init_device_mesh(device_type, plan.shape, mesh_dim_names=plan.names)

    @property
    def device_mesh(self) -> DeviceMesh:
        """torch's DeviceMesh; CommError when there is no process group."""
        if self._device_mesh is None:
            raise CommError("there is no DeviceMesh without a process group: call ds_core.comm.init_distributed()")
        return self._device_mesh

    def size(self, *names: str) -> int:
        """Ranks along the axes together; an axis this mesh does not have counts 1."""
        return self.plan.size(*names)

    def rank(self, *names: str) -> int:
        """This rank's place along the axes together; 0 on an axis this mesh does not have."""
        return self.plan.along(self._rank, *names)

    @property
    def batch_axes(self) -> tuple[str, ...]:
        """Axes whose ranks work on different samples: the data axis, and others that divide the batch."""
        return self.plan.batch_axes

    @property
    def model_axes(self) -> tuple[str, ...]:
        """Axes whose ranks work on the same samples."""
        return self.plan.model_axes

    def coords(self) -> dict[str, int]:
        """This rank's place on each axis."""
        return self.plan.coords(self._rank)

    def ranks(self, *names: str) -> tuple[int, ...]:
        """World ranks of this rank's group along the axes together, in group order."""
        return next(group for group in self.plan.groups(*names) if self._rank in group)

    def group(self, *names: str) -> ProcessGroup | None:
        """This rank's group along the axes together; None only when there is no process group (one rank).

        Axes this mesh does not have add nothing: alone they give a group of this rank only. Called on all ranks the
        first time for each combination; later calls are look-ups.
        """
        if not names:
            raise ValueError("mesh.group needs at least one axis name")
        if self._device_mesh is None:
            return None
        key = tuple(name for name in self.plan.names if name in names)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._made(key, "+".join(key) or "self")
        return group

    def replicas(self, *names: str) -> Replicas:
        """This rank and those that differ from it only along the axes, as holders of the same values.

        Called on all ranks the first time for each combination.
        """
        label = "+".join(name for name in self.plan.names if name in names) or "self"
        return Replicas(self.ranks(*names), self.rank(*names), self.group(*(names or ("self",))), label)

    def replicas_of(self, groups: Sequence[Sequence[int]], label: str) -> Replicas | None:
        """The group this rank is in, of some listed by their world ranks; None where it is in none.

        Called on all ranks, with the same groups in the same order.

        Args:
            groups: disjoint; the first of each is where initial values come from.
            label: what reports call such a group; where a rank is in several kinds, all ranks meet in them in the order
                of their labels.
        """
        from ds_core.comm import new_group

        mine: Replicas | None = None
        for members in groups:
            made = new_group(members, name=label) if self._device_mesh is not None else None
            if self._rank in members:
                mine = Replicas(tuple(members), list(members).index(self._rank), made, label)
        return mine

    def axis(self, name: str) -> Axis:
        """The axis by name; ConfigError with the nearest name when this mesh does not have it."""
        for axis in self.plan.axes:
            if axis.name == name:
                return axis
        known = ", ".join(self.plan.names)
        raise ConfigError(f"the mesh has no axis {name!r}; it has {known}.{did_you_mean(name, self.plan.names)}")

    def _made(self, names: tuple[str, ...], label: str) -> ProcessGroup:
        import torch.distributed as dist

        from ds_core.comm import new_group
        from ds_core.comm.state import WORLD_LABEL, counter

        size = self.plan.size(*names)
        if size == self.plan.world_size and dist.group.WORLD is not None:
            return dist.group.WORLD
        if len(names) == 1:
            group: ProcessGroup = self.device_mesh.get_group(names[0])
            if counter.label_of(group.group_name) != WORLD_LABEL:
                counter.label(group.group_name, label)
            return group
        mine: ProcessGroup | None = None
        if size == 1:  # nobody else takes part, so nobody else needs to be called
            mine = new_group([self._rank], name=label, use_local_synchronization=True)
        for members in self.plan.groups(*names) if size > 1 else ():
            made = new_group(members, name=label)
            if self._rank in members:
                mine = made
        if mine is None:
            raise CommError(f"no group along {label} holds rank {self._rank}: {self.plan}")
        return mine

    def __str__(self) -> str:
        return f"{self.plan}\n  this is rank {self._rank} on {self.device_type}"
