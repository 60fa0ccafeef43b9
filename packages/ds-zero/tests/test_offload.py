"""Offload on the host: the same numbers from files as from memory, in bounded memory, and every key acts.

Devices with memory of their own are tested in examples/vendor-plugin/tests/test_offload.py.
"""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch
from torch import nn

from ds_core.errors import ConfigError, OffloadError
from ds_core.placeholder import is_placeholder
from ds_core.testing import run_ranks

WIDTH = 33
STEPS = 4


class Net(nn.Module):
    """Odd sizes, residual blocks, one parameter that no loss reaches."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(blocks))
        self.unused = nn.Linear(3, 50)
        self.last = nn.Linear(WIDTH, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.last(x)


def settings(cell: dict) -> dict:
    zero = {"param_persistence_threshold": 40, **cell.get("zero", {})}
    return {
        "train_micro_batch_size_per_gpu": 4,
        "gradient_clipping": 0.05,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "weight_decay": 0.1}},
        **{key: value for key, value in cell.items() if key != "zero"},
        "zero_optimization": zero,
    }


def make(cell: dict, **more):
    import ds_core

    return ds_core.initialize(model=Net(), config=settings(cell), **more)[0]


def advance(engine, steps: int, start: int = 0) -> list[float]:
    """Losses of `steps` steps; step i sees the same data in every run."""
    from ds_core import comm

    dtype = next(engine.module.parameters()).dtype
    losses = []
    for step in range(start, start + steps):
        for micro in range(engine.gradient_accumulation_steps()):
            generator = torch.Generator().manual_seed(1000 * step + 10 * micro + comm.get_rank())
            loss = engine(torch.randn(4, WIDTH, generator=generator).to(dtype)).float().square().mean()
            engine.backward(loss)
            engine.step()
            losses.append(loss.item())
    return losses


def outcome(engine, losses: list[float]) -> tuple:
    norm = engine.get_global_grad_norm()
    state = {name: tensor.clone() for name, tensor in engine.module.state_dict().items()}
    engine.destroy()
    return losses, norm, state


def train_all(cells: list[dict]) -> list[tuple]:
    results = []
    for cell in cells:
        engine = make(cell)
        results.append(outcome(engine, advance(engine, STEPS)))
    return results


def assert_same(left: tuple, right: tuple) -> None:
    assert left[:2] == right[:2]
    assert left[2].keys() == right[2].keys()
    assert [name for name in left[2] if not torch.equal(left[2][name], right[2][name])] == []


def nvme(folder: Path, **more) -> dict:
    return {"device": "nvme", "nvme_path": str(folder), **more}


# --- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_states_in_host_memory_and_in_files_change_no_number(tmp_path, stage, accumulation, precision):
    homes = [
        {"device": "none"},
        {"device": "cpu"},
        {"device": "cpu", "ratio": 0.5},
        nvme(tmp_path),
        nvme(tmp_path, ratio=0.5, fast_init=True, pipeline_read=True, pipeline_write=True),
    ]
    base = {"gradient_accumulation_steps": accumulation, **precision}
    cells = [{**base, "zero": {"stage": stage, "sub_group_size": 200, "offload_optimizer": home}} for home in homes]
    for none, *others in run_ranks(train_all, 2, cells):
        for other in others:
            assert_same(none, other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
@pytest.mark.parametrize("world", [1, 2])
def test_parameters_in_host_memory_and_in_files_change_no_number(tmp_path, world, precision):
    params = [{"device": "cpu"}, nvme(tmp_path, max_in_cpu=0), nvme(tmp_path, max_in_cpu=700, buffer_count=1)]
    zeros = [{"offload_param": param} for param in params]
    zeros += [{**zero, "offload_optimizer": nvme(tmp_path), "sub_group_size": 200} for zero in zeros]
    cells = [{**precision, "zero": {"stage": 3, **zero}} for zero in ({}, *zeros)]
    for none, *others in run_ranks(train_all, world, cells):
        for other in others:
            assert_same(none, other)


def test_a_torch_optimizer_made_by_hand_runs_on_the_host_where_that_is_allowed():
    cell = {"zero": {"stage": 1, "offload_optimizer": {"device": "cpu"}}}
    with pytest.raises(ConfigError, match=r"SGD.*zero_force_ds_cpu_optimizer to false"):
        make(cell, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    engine = make({**cell, "zero_force_ds_cpu_optimizer": False}, optimizer=lambda g: torch.optim.SGD(g, lr=0.1))
    losses = advance(engine, 3)
    engine.destroy()
    plain = make({"zero": {"stage": 1}}, optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    assert advance(plain, 3) == losses


# --- checkpoints ----------------------------------------------------------------------------------------------------


def saved(cell: dict, folder: str) -> None:
    engine = make(cell)
    advance(engine, 2)
    engine.save_checkpoint(folder, tag="two")
    engine.destroy()


def resumed(cells: list[dict], folder: str) -> list[tuple]:
    results = []
    for cell in cells:
        engine = make(cell)
        engine.load_checkpoint(folder, tag="two")
        results.append(outcome(engine, advance(engine, 2, start=2)))
    return results


@pytest.mark.parametrize("precision", [{}, {"bf16": {"enabled": True}}], ids=["fp32", "bf16"])
def test_checkpoints_do_not_know_where_states_lived(tmp_path, precision):
    from ds_core.checkpoint import CheckpointReader

    swap = tmp_path / "swap"
    swap.mkdir()
    zeros = {
        "none": {"stage": 2},
        "files": {"stage": 2, "sub_group_size": 200, "offload_optimizer": nvme(swap, ratio=0.7)},
        "all": {
            "stage": 3,
            "sub_group_size": 200,
            "offload_optimizer": nvme(swap, fast_init=True),
            "offload_param": nvme(swap, max_in_cpu=0),
        },
    }
    cells = {name: {**precision, "zero": zero} for name, zero in zeros.items()}
    for name, cell in cells.items():
        run_ranks(saved, 2, cell, str(tmp_path / name))
    readers = {name: CheckpointReader(tmp_path / name / "two") for name in cells}
    keys = set(readers["none"].keys())
    assert any(key.startswith("optimizer/exp_avg_sq/") for key in keys)
    for name in ("files", "all"):
        assert [k for k in keys if not torch.equal(readers[name].full(k), readers["none"].full(k))] == []
        # Files have room for the states of parameters that were never updated; in memory there may be none yet.
        extra = set(readers[name].keys()) - keys
        assert all("/unused." in key and not readers[name].full(key).any() for key in extra)
    straight = run_ranks(resumed, 2, [cells["none"]], str(tmp_path / "none"))[0][0]
    for source in ("none", "files"):
        for result in run_ranks(resumed, 2, list(cells.values()), str(tmp_path / source))[0]:
            assert_same(straight, result)


def disk_fills_up(cell: dict, folder: str) -> tuple[str, list[str]]:
    engine = make(cell)
    advance(engine, 2)
    engine.save_checkpoint(folder, tag="two")
    engine.wait_for_checkpoint()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))  # writes beyond fail, as on a full disk
    try:
        with pytest.raises(OffloadError) as caught:
            advance(engine, 1, start=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    engine.destroy()
    return str(caught.value), [path.name for path in Path(folder).iterdir()]


def test_a_disk_that_fills_up_in_a_step_leaves_the_last_checkpoint(tmp_path):
    cell = {"zero": {"stage": 1, "sub_group_size": 500, "offload_optimizer": nvme(tmp_path)}}
    folder = tmp_path / "run"
    ((message, left),) = run_ranks(disk_fills_up, 1, cell, str(folder))
    assert message.startswith("storing tile ")
    assert "exp_avg" in message
    assert "zero_optimization.offload_optimizer.nvme_path" in message
    assert sorted(left) == ["latest", "two"]
    straight = train_all_for(cell)
    assert_same(straight, run_ranks(resumed, 1, [cell], str(folder))[0][0])


def train_all_for(cell: dict) -> tuple:
    losses, norm, state = run_ranks(train_all, 1, [cell])[0][0]
    return losses[2:], norm, state


# --- memory ---------------------------------------------------------------------------------------------------------


def accounted(cell: dict) -> dict:
    engine = make(cell)
    part = next(part for part in engine.parts if part.name == "optimizer")
    placement, optimizer = part.placement, part.optimizer
    advance(engine, 2)
    tensors = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    tensors += [piece.master.data for piece in part.pieces if piece.separate]
    found = {
        "buffers": placement.pool.count,
        "pool": placement.pool.nbytes,
        "file": placement.store.nbytes,
        "tiles": len(part.pieces),
        "resident": [tuple(tensor.shape) for tensor in tensors if not is_placeholder(tensor)],
    }
    engine.destroy()
    return found


@pytest.mark.parametrize("count", [1, 3])
def test_memory_is_buffer_count_tiles_whatever_the_state_takes(tmp_path, count):
    tile = 128
    cell = {
        "bf16": {"enabled": True},
        "zero": {"stage": 1, "sub_group_size": tile, "offload_optimizer": nvme(tmp_path, buffer_count=count)},
    }
    (found,) = run_ranks(accounted, 1, cell)
    assert found["buffers"] == count
    assert found["pool"] == count * 3 * 4096  # 128 fp32 masters and two moments, a block each
    assert found["file"] == found["tiles"] * 3 * 4096 > 4 * found["pool"]
    assert found["resident"] == []


# --- what each key does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["offload_optimizer", "offload_param"])
def test_a_folder_that_is_not_there_is_named(tmp_path, which):
    with pytest.raises(
        OffloadError, match=rf"zero_optimization\.{which}\.nvme_path is .*missing, which does not exist"
    ):
        make({"zero": {"stage": 3, which: nvme(tmp_path / "missing")}})


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ({"type": "RMSprop", "params": {"lr": 0.1}}, "needs an optimizer made of the op table, not RMSprop"),
        ({"type": "Muon", "params": {"lr": 0.1}}, "not known to update each element by itself"),
    ],
)
def test_an_optimizer_with_states_of_its_own_cannot_live_in_files(tmp_path, optimizer, message):
    with pytest.raises(ConfigError, match=message):
        make({"optimizer": optimizer, "zero": {"stage": 1, "offload_optimizer": nvme(tmp_path)}})
