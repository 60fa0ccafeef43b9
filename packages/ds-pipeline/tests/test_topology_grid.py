"""The groups of a grid on real ranks: sums over them are sums over the ranks that the topology names."""

from __future__ import annotations

import pytest
import torch

from ds_core import comm
from ds_core.testing import RankError, run_ranks
from ds_pipeline.topology import PipeDataParallelTopology, PipelineParallelGrid, PipeModelDataParallelTopology

KINDS = ("pipe", "data", "model", "slice", "tensor_model")


def _sum(group) -> int:
    value = torch.tensor([float(2 ** comm.get_rank())])
    comm.all_reduce(value, group=group)
    return int(value.item())


def _told(grid: PipelineParallelGrid) -> dict[str, tuple[int, int, int]]:
    """For each kind of group: rank, size, and the sum of 2 ** rank over it, which names its members."""
    return {
        kind: (
            getattr(grid, f"get_{kind}_parallel_rank")(),
            getattr(grid, f"get_{kind}_parallel_world_size")(),
            _sum(getattr(grid, f"get_{kind}_parallel_group")()),
        )
        for kind in KINDS
    }


def _three():
    grid = PipelineParallelGrid(topology=PipeModelDataParallelTopology(num_pp=2, num_mp=2, num_dp=1))
    places = grid.get_stage_id(), grid.get_data_parallel_id(), grid.get_global_rank(), grid.is_first_stage()
    return _told(grid), places, grid.stage_to_global(1 - grid.get_stage_id())


@pytest.mark.ranks
def test_stages_and_slices_on_four_ranks():
    for rank, (told, places, other) in enumerate(run_ranks(_three, 4)):
        stage, part = divmod(rank, 2)
        assert told["pipe"] == (stage, 2, 2**part + 2 ** (part + 2))
        assert told["slice"] == told["tensor_model"] == (part, 2, 3 << (2 * stage))
        assert told["model"] == (rank, 4, 0b1111)
        assert told["data"] == (0, 1, 2**rank)
        assert places == (stage, 0, rank, stage == 0)
        assert other == (rank + 2) % 4


def _two():
    grid = PipelineParallelGrid(topology=PipeDataParallelTopology(2, 2))
    assert grid.topology().get_axis_names() == ["pipe", "data"]
    return _told(grid), [grid.stage_to_global(stage, data=data) for stage in (0, 1) for data in (0, 1)]


@pytest.mark.ranks
def test_stages_and_copies_on_four_ranks():
    for rank, (told, ranks) in enumerate(run_ranks(_two, 4)):
        stage, copy = divmod(rank, 2)
        assert told["pipe"] == told["model"] == (stage, 2, 2**copy + 2 ** (copy + 2))
        assert told["data"] == (copy, 2, 3 << (2 * stage))
        assert told["slice"] == (0, 1, 2**rank)
        assert ranks == [0, 1, 2, 3]


def _default():
    return _told(PipelineParallelGrid())


@pytest.mark.ranks
def test_without_a_topology_every_rank_is_a_copy():
    for rank, told in enumerate(run_ranks(_default, 2)):
        assert told["data"] == (rank, 2, 0b11)
        assert told["pipe"] == told["model"] == (0, 1, 2**rank)


def _part_of_the_job():
    members = [1, 2]
    group = comm.new_group(members)
    if comm.get_rank() not in members:
        return None
    grid = PipelineParallelGrid(PipeDataParallelTopology(2, 1), process_group=group)
    return _told(grid), grid.stage_to_global(0), grid.stage_to_global(1)


@pytest.mark.ranks
def test_a_grid_over_some_of_the_ranks():
    outside, *inside = run_ranks(_part_of_the_job, 3)
    assert outside is None
    for place, (told, first, second) in enumerate(inside):
        assert told["pipe"] == (place, 2, 0b110)
        assert (first, second) == (1, 2)


def _too_large():
    PipelineParallelGrid(PipeDataParallelTopology(2, 2))


@pytest.mark.ranks
def test_a_topology_of_another_size_is_refused():
    with pytest.raises(RankError, match="pipe 2 x data 2 has 4 ranks, but the process group has 2"):
        run_ranks(_too_large, 2)


def test_one_process_without_a_group_is_a_grid_of_one():
    grid = PipelineParallelGrid()
    assert grid.get_pipe_parallel_group() is None
    assert (grid.get_stage_id(), grid.get_data_parallel_world_size()) == (0, 1)
    assert grid.is_first_stage()
    assert grid.is_last_stage()


def _of_engine():
    import ds_core
    from ds_pipeline import LayerSpec, PipelineModule

    model = PipelineModule([LayerSpec(torch.nn.Linear, 2, 2) for _ in range(2)], num_stages=2)
    config = {"train_micro_batch_size_per_gpu": 1, "optimizer": {"type": "SGD", "params": {"lr": 0.1}}}
    engine = ds_core.initialize(model=model, config=config)[0]
    grid = engine.grid
    found = _told(grid), grid.get_stage_id() == engine.get_pipeline_parallel_rank(), grid.stage_to_global(1)
    assert grid is engine.grid
    engine.destroy()
    return found


@pytest.mark.ranks
def test_the_engine_of_a_pipeline_has_a_grid_over_its_own_groups():
    for rank, (told, is_stage, last) in enumerate(run_ranks(_of_engine, 4)):
        stage, part = divmod(rank, 2)
        assert told["pipe"] == told["model"] == (stage, 2, 2**part + 2 ** (part + 2))
        assert told["data"] == (part, 2, 3 * 4**stage)
        assert told["slice"] == told["tensor_model"] == (0, 1, 2**rank)
        assert is_stage
        assert last == part + 2
