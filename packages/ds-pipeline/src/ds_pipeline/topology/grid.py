"""A topology with process groups, under the names that model-parallel code asks its `mpu` for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ds_pipeline.errors import TopologyError
from ds_pipeline.topology.axes import PipeDataParallelTopology, ProcessTopology

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.distributed import ProcessGroup

__all__ = ["PipelineParallelGrid"]

PIPE = "pipe"
SLICES = ("model", "tensor")  # axes along which each layer is divided: DeepSpeed's name and the mesh's


class PipelineParallelGrid:
    """This rank's place and groups. Made on all ranks of the process group, with the same topology.

    Four groups, of the ranks that differ from this one
    - along ``pipe``: one pipeline;
    - along the axes that divide layers (``model`` or ``tensor``): the *slice* or *tensor model* group;
    - along both: the *model* group, one whole copy of the model;
    - along all others (``data``, and for example ``expert``): the *data* group, the copies.

    Args:
        topology: who is where; None makes every rank a data-parallel one.
        process_group: whose ranks the topology counts; None is all ranks.
        groups: groups that there are already, by kind: ``pipe``, ``slice``, ``model``, ``data``; the rest is made.

    Raises:
        TopologyError: the topology does not have as many ranks as the group.
    """

    def __init__(
        self,
        topology: ProcessTopology | None = None,
        process_group: ProcessGroup | None = None,
        *,
        groups: Mapping[str, ProcessGroup | None] | None = None,
    ) -> None:
        from ds_core import comm

        self.global_rank: int = comm.get_rank()
        world = _members(process_group)
        if topology is None:
            topology = PipeDataParallelTopology(1, len(world))
        if topology.world_size() != len(world):
            raise TopologyError(
                f"the topology {topology} has {topology.world_size()} ranks, but the process group has {len(world)}; "
                "change the sizes of its axes, or start as many ranks"
            )
        self._topology: ProcessTopology = topology
        self._world: list[int] = world
        self._at: int = world.index(self.global_rank)
        slices = tuple(axis for axis in topology.axes if axis in SLICES)
        others = tuple(axis for axis in topology.axes if axis not in (PIPE, *SLICES))
        kinds = {PIPE: (PIPE,), "slice": slices, "model": (PIPE, *slices), "data": others}
        self._ranks: dict[str, list[int]] = {}
        self._groups: dict[str, ProcessGroup | None] = {}
        for kind, axes in kinds.items():
            if groups is not None and kind in groups:
                self._ranks[kind] = next([world[m] for m in g] for g in topology.groups(*axes) if self._at in g)
                self._groups[kind] = groups[kind]
            else:
                self._join(kind, axes, process_group)

    def _join(self, kind: str, axes: tuple[str, ...], process_group: ProcessGroup | None) -> None:
        """Make the groups along `axes` on all ranks, and keep this rank's."""
        from ds_core import comm

        for members in self._topology.groups(*axes):
            ranks = [self._world[member] for member in members]
            is_mine = self._at in members
            if is_mine:
                self._ranks[kind] = ranks
                self._groups[kind] = None
            if not comm.is_initialized():
                continue
            if process_group is not None:
                # Ranks outside do not take part, so each group is made by its members alone.
                if is_mine:
                    self._groups[kind] = comm.new_group(ranks, name=f"grid {kind}", use_local_synchronization=True)
            else:
                made = comm.new_group(ranks, name=f"grid {kind}")
                if is_mine:
                    self._groups[kind] = made

    def topology(self) -> ProcessTopology:
        """Who is where."""
        return self._topology

    def get_global_rank(self) -> int:
        """This rank among all ranks of the job."""
        return self.global_rank

    def _coord(self) -> Any:
        return self._topology.get_coord(self._at)

    def _rank(self, kind: str) -> int:
        return self._ranks[kind].index(self.global_rank)

    def get_stage_id(self) -> int:
        """This rank's place in its pipeline, 0 first."""
        return self._rank(PIPE)

    def get_data_parallel_id(self) -> int:
        """Which copy of the model this rank has a part of."""
        return self._rank("data")

    def stage_to_global(self, stage_id: int, **kwargs: int) -> int:
        """The global rank at `stage_id` of this rank's pipeline, or of that with other coordinates (``data=1``).

        Raises:
            TopologyError: there is no such stage or coordinate.
        """
        coord = {**self._coord()._asdict(), **kwargs}
        if PIPE in self._topology.axes:
            coord[PIPE] = stage_id
        elif stage_id != 0:
            raise TopologyError(f"the topology {self._topology} has one stage, and no stage {stage_id}")
        return self._world[self._topology.get_rank(**coord)]

    def is_first_stage(self) -> bool:
        """Whether this rank has the input of its pipeline."""
        return self.get_stage_id() == 0

    def is_last_stage(self) -> bool:
        """Whether this rank is the end of its pipeline."""
        return self.get_stage_id() == self.get_pipe_parallel_world_size() - 1

    def get_pipe_parallel_rank(self) -> int:
        """This rank's place in its pipeline."""
        return self._rank(PIPE)

    def get_pipe_parallel_world_size(self) -> int:
        """Ranks of a pipeline."""
        return len(self._ranks[PIPE])

    def get_pipe_parallel_group(self) -> ProcessGroup | None:
        """The ranks of this pipeline; None only without a process group, as for all groups."""
        return self._groups[PIPE]

    def get_data_parallel_rank(self) -> int:
        """Which copy of the model this rank has a part of."""
        return self._rank("data")

    def get_data_parallel_world_size(self) -> int:
        """Copies of the model."""
        return len(self._ranks["data"])

    def get_data_parallel_group(self) -> ProcessGroup | None:
        """The ranks with this rank's part in the other copies."""
        return self._groups["data"]

    def get_model_parallel_rank(self) -> int:
        """This rank's place among those that share one copy of the model, stages and slices together."""
        return self._rank("model")

    def get_model_parallel_world_size(self) -> int:
        """Ranks that share one copy of the model."""
        return len(self._ranks["model"])

    def get_model_parallel_group(self) -> ProcessGroup | None:
        """The ranks that share one copy of the model: where an overflow anywhere concerns all."""
        return self._groups["model"]

    def get_slice_parallel_rank(self) -> int:
        """This rank's place among those that divide the layers of its stage."""
        return self._rank("slice")

    def get_slice_parallel_world_size(self) -> int:
        """Ranks that divide the layers of a stage."""
        return len(self._ranks["slice"])

    def get_slice_parallel_group(self) -> ProcessGroup | None:
        """The ranks that divide the layers of this stage."""
        return self._groups["slice"]

    get_tensor_model_parallel_rank = get_slice_parallel_rank
    get_tensor_model_parallel_world_size = get_slice_parallel_world_size
    get_tensor_model_parallel_group = get_slice_parallel_group


def _members(process_group: ProcessGroup | None) -> list[int]:
    """World ranks of a group, in its order."""
    from ds_core import comm

    if process_group is None:
        return list(range(comm.get_world_size()))
    import torch.distributed as dist

    return list(dist.get_process_group_ranks(process_group))
