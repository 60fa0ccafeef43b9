"""Ranks and their coordinates along named axes, as arithmetic: no process group, no torch."""

from __future__ import annotations

import itertools
import math
from collections import namedtuple
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ds_core.errors import did_you_mean
from ds_pipeline.errors import TopologyError

if TYPE_CHECKING:
    from ds_core.mesh import MeshPlan

__all__ = ["PipeDataParallelTopology", "PipeModelDataParallelTopology", "ProcessTopology", "topology_of"]


class ProcessTopology:
    """Ranks numbered along axes, the first axis varying slowest: neighbours on the last axis are neighbours in rank.

    Args:
        axes: names, which are also the names of a coordinate's attributes.
        dims: ranks along each.

    Raises:
        TopologyError: not one size of at least 1 for each name, or a name that is no identifier or there twice.
    """

    def __init__(self, axes: Sequence[str], dims: Sequence[int]) -> None:
        names = ", ".join(axes)
        if len(axes) != len(dims) or not axes:
            raise TopologyError(f"a topology needs one size for each axis, got {len(dims)} for {len(axes)} ({names})")
        if len(set(axes)) != len(axes) or not all(axis.isidentifier() and axis[0] != "_" for axis in axes):
            raise TopologyError(f"axes of a topology must be different identifiers, got {names}")
        if any(dim < 1 for dim in dims):
            raise TopologyError(f"sizes of a topology must be at least 1, got {list(dims)} for {names}")
        self.axes: list[str] = list(axes)
        self.dims: list[int] = list(dims)
        self.ProcessCoord: Callable[..., Any] = _named_tuple(self.axes)
        coords = itertools.product(*map(range, self.dims))
        self._coords: list[Any] = [self.ProcessCoord(*coord) for coord in coords]
        self.mapping: dict[Any, int] = {coord: rank for rank, coord in enumerate(self._coords)}

    def world_size(self) -> int:
        """Ranks in all."""
        return math.prod(self.dims)

    def get_axis_names(self) -> list[str]:
        """The axes, in order."""
        return list(self.axes)

    def get_dim(self, axis: str) -> int:
        """Ranks along `axis`; 0 for an axis this topology does not have."""
        return self.dims[self.axes.index(axis)] if axis in self.axes else 0

    def get_rank(self, **coord_kwargs: int) -> int:
        """The rank at a coordinate, given for every axis.

        Raises:
            TopologyError: an axis is missing or unknown, or a place is outside its axis.
        """
        self._known(coord_kwargs)
        missing = [axis for axis in self.axes if axis not in coord_kwargs]
        if missing:
            raise TopologyError(
                f"get_rank needs every axis; {', '.join(missing)} is missing (filter_match takes fewer)"
            )
        rank = self.mapping.get(self.ProcessCoord(**coord_kwargs))
        if rank is None:
            raise TopologyError(f"{coord_kwargs} is outside {self}")
        return rank

    def get_coord(self, rank: int) -> Any:
        """The coordinate of `rank`, a named tuple with an attribute for each axis.

        Raises:
            TopologyError: no such rank.
        """
        if not 0 <= rank < len(self._coords):
            raise TopologyError(f"rank {rank} is outside {self}, whose ranks are 0 to {self.world_size() - 1}")
        return self._coords[rank]

    def get_rank_repr(
        self, rank: int, omit_axes: Sequence[str] = ("data", "pipe"), inner_sep: str = "_", outer_sep: str = "-"
    ) -> str:
        """The coordinate of `rank` for file names, like ``model_01``; empty when every axis is left out."""
        coord = self.get_coord(rank)
        return outer_sep.join(
            f"{axis}{inner_sep}{getattr(coord, axis):02d}" for axis in self.axes if axis not in omit_axes
        )

    def get_axis_comm_lists(self, axis: str) -> list[list[int]]:
        """The groups along `axis`: ranks that differ only there. Empty for an axis this topology does not have."""
        return self.groups(axis) if axis in self.axes else []

    def groups(self, *axes: str) -> list[list[int]]:
        """The groups along several axes together: ranks that differ only there. Each rank is in exactly one."""
        found: dict[tuple[int, ...], list[int]] = {}
        for rank, coord in enumerate(self._coords):
            key = tuple(at for axis, at in zip(self.axes, coord, strict=True) if axis not in axes)
            found.setdefault(key, []).append(rank)
        return list(found.values())

    def filter_match(self, **filter_kwargs: int) -> list[int]:
        """Ranks at these places, in order; axes left out match any place.

        Raises:
            TopologyError: an unknown axis.
        """
        self._known(filter_kwargs)
        return [
            rank
            for rank, coord in enumerate(self._coords)
            if all(getattr(coord, axis) == at for axis, at in filter_kwargs.items())
        ]

    def get_axis_list(self, axis: str, idx: int) -> list[int]:
        """Ranks whose place on `axis` is `idx`, in order."""
        return self.filter_match(**{axis: idx})

    def _known(self, given: dict[str, int]) -> None:
        for axis in given:
            if axis not in self.axes:
                raise TopologyError(f"{self} has no axis {axis!r}.{did_you_mean(axis, self.axes)}")

    def __str__(self) -> str:
        return " x ".join(f"{axis} {dim}" for axis, dim in zip(self.axes, self.dims, strict=True))


def _named_tuple(fields: list[str]) -> Callable[..., Any]:
    make: Callable[..., Any] = namedtuple  # fields that are not literals are beyond mypy
    made: Callable[..., Any] = make("ProcessCoord", fields)
    return made


class PipeDataParallelTopology(ProcessTopology):
    """Stages outside, data-parallel ranks inside: the ranks that sum gradients are next to each other."""

    def __init__(self, num_pp: int, num_dp: int) -> None:
        super().__init__(axes=["pipe", "data"], dims=[num_pp, num_dp])


class PipeModelDataParallelTopology(ProcessTopology):
    """Stages outside, then data-parallel ranks, then the ranks that divide each layer, which talk most."""

    def __init__(self, num_pp: int, num_mp: int, num_dp: int) -> None:
        super().__init__(axes=["pipe", "data", "model"], dims=[num_pp, num_dp, num_mp])


def topology_of(plan: MeshPlan) -> ProcessTopology:
    """The topology of an engine's mesh (``engine.mesh.plan``): the same axes, the same ranks."""
    return ProcessTopology(axes=list(plan.names), dims=list(plan.shape))
