"""Offload piece by piece: files, pipelines, buffers, the split by ratio, and what a config may ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ds_core.accelerator import HostAccelerator
from ds_core.aio import SwapStore, ThreadedIO
from ds_core.config import Facts, load, resolve
from ds_core.errors import ConfigError
from ds_core.holdings import Replicas
from ds_core.layout import ALIGNMENT_NUMEL, Range
from ds_core.masters import flat_pieces
from ds_zero.offload.cut import split, tiles
from ds_zero.offload.file import FilePlacement, FilePolicy
from ds_zero.offload.host import HostPlacement
from ds_zero.offload.shards import FileShards, Shard

WIDTH = 33
STEPS = 4


class Recorded:
    """Moves data by a real engine and notes what begins and ends, in order."""

    def __init__(self) -> None:
        self.inner = ThreadedIO()
        self.events: list[tuple[str, int, int]] = []

    def read(self, tensor, path, offset):
        return self._note("read", tensor, self.inner.read(tensor, path, offset), offset)

    def write(self, tensor, path, offset):
        return self._note("write", tensor, self.inner.write(tensor, path, offset), offset)

    def _note(self, kind, tensor, handle, offset):
        self.events.append((kind, offset, tensor.numel() * tensor.element_size()))
        recorded = self

        class Noted:
            def wait(self) -> None:
                handle.wait()
                recorded.events.append((f"{kind} done", offset, 0))

        return Noted()

    def register(self, buffer):
        self.inner.register(buffer)

    def unregister(self, buffer):
        self.inner.unregister(buffer)

    def close(self) -> None:
        self.inner.close()


def adopt(folder: Path, policy: FilePolicy, *, tile: int = 1 << 20, ratio: float = 1.0, count: int = 3):
    """A placement over the masters of a bf16 model, its pieces, and what its engine did."""
    from ds_accel_cpu.optim import CPUAdam
    from ds_core.flat import NamedParameter
    from ds_core.space import ReplicatedSpace, SpacePolicy

    model = nn.ParameterList([nn.Parameter(torch.randn(1024, dtype=torch.bfloat16)) for _ in range(2)])
    members = [NamedParameter(name, parameter, 0) for name, parameter in model.named_parameters()]
    space = ReplicatedSpace(members, policy=SpacePolicy(), replicas=Replicas((0,), 0, None, "data"))
    io = Recorded()
    store = SwapStore(folder, 0, io, buffer_count=count)
    placement = FilePlacement(store, io, policy, ratio=ratio, tile_numel=tile, accelerator=None)
    optimizer = CPUAdam(list(model))
    pieces = flat_pieces(space, torch.float32, placement)
    optimizer.param_groups[0]["params"] = [piece.master for piece in pieces]
    placement.adopt(optimizer, pieces, space)
    return placement, pieces, io


def check_masters(pieces) -> None:
    assert all(torch.equal(piece.master.data, piece.working.float()) for piece in pieces)


def test_fast_init_writes_masters_only(tmp_path):
    written = {}
    for fast in (False, True):
        placement, pieces, io = adopt(tmp_path, FilePolicy(fast_init=fast))
        written[fast] = sum(nbytes for kind, _, nbytes in io.events if kind == "write")
        placement.visit(pieces, check_masters, store=False)
        placement.close()
    assert written == {False: 3 * 2048 * 4, True: 2048 * 4}


def test_sub_group_size_and_ratio_cut_what_is_stored(tmp_path):
    for tile, ratio, stored in ((2048, 1.0, [2048]), (512, 1.0, [512] * 4), (512, 0.5, [512] * 2), (100, 0.25, None)):
        placement, pieces, _ = adopt(tmp_path, FilePolicy(), tile=tile, ratio=ratio)
        found = [piece.span.numel for piece in pieces if piece.is_stored]
        assert found == stored if stored else max(found) == 96
        assert sum(found) == ratio * 2048
        assert sum(piece.span.numel for piece in pieces) == 2048
        placement.close()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("behind", [False, True])
def test_pipelines_overlap_what_they_are_asked_to(tmp_path, ahead, behind):
    placement, pieces, io = adopt(tmp_path, FilePolicy(ahead, behind), tile=512)
    io.events.clear()
    placement.visit(pieces, lambda now: io.events.append(("work", now[0].span.start, 0)))
    order = [kind for kind, _, _ in io.events]
    first, second = [i for i, kind in enumerate(order) if kind == "work"][:2]
    assert (order[:first].count("read") == 2) is ahead
    assert (order[:second].count("write done") == 0) is behind
    placement.close()


def test_too_few_buffers_for_the_pipeline_are_refused():
    asked = {"device": "nvme", "nvme_path": "/", "buffer_count": 2, "pipeline_read": True, "pipeline_write": True}
    with pytest.raises(ConfigError, match=r"offload_optimizer.buffer_count must be at least 3 .* got 2"):
        section({"stage": 1, "offload_optimizer": asked})


def shards(folder: Path, count: int = 3, **more) -> FileShards:
    io = ThreadedIO()
    store = SwapStore(folder, 0, io, buffer_count=count, setting="zero_optimization.offload_param")
    return FileShards(store, io, **{"buffer_numel": 1000, "resident_numel": 0, "accelerator": None, **more})


def test_max_in_cpu_elements_stay_in_memory(tmp_path):
    wanted = [Shard(name, name, 400, torch.float32) for name in "abcd"]
    for limit, stay in ((0, ""), (399, ""), (400, "a"), (1000, "ab"), (1600, "abcd")):
        files = shards(tmp_path, resident_numel=limit)
        assert "".join(files.plan(wanted)) == stay
        files.close()


def test_a_shard_larger_than_a_buffer_names_the_key_and_the_size(tmp_path):
    files = shards(tmp_path)
    with pytest.raises(
        ConfigError, match=r"offload_param.buffer_size is 1000 .* 'big' has 1001; set it to at least 1001"
    ):
        files.plan([Shard("x", "'big'", 1001, torch.float32)])
    files.close()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_shards_are_read_ahead_in_the_order_they_were_used(tmp_path, count):
    files = shards(tmp_path, count)
    names = "abcdef"
    files.plan([Shard(name, name, 100, torch.bfloat16) for name in names])
    for place, name in enumerate(names):
        files.write(name, 0, torch.full((100,), float(place)))
    for _ in range(3):
        for name in names + names[::-1]:
            values = files.read(name, ahead=True)
            assert values.unique().tolist() == [names.index(name)]
    assert (files.reads_ahead > 0) is (count > 1)
    assert files.pool.count == count
    files.write("c", 10, torch.full((5,), 7.0))
    files.read("a")
    changed = files.read("c")
    assert changed[10:15].unique().tolist() == [7]
    assert changed[:10].unique().tolist() == [2]
    files.close()


def test_pinning_asks_the_accelerator():
    class Pinning(HostAccelerator):
        def __init__(self) -> None:
            super().__init__()
            self.pinned: list[int] = []

        def pin(self, tensor: torch.Tensor) -> torch.Tensor:
            self.pinned.append(tensor.numel())
            return tensor

    accelerator = Pinning()
    HostPlacement(ratio=1.0, tile_numel=64, accelerator=accelerator).empty(96, torch.float32, torch.device("cpu"))
    assert accelerator.pinned == [96]
    HostPlacement(ratio=1.0, tile_numel=64, accelerator=None).empty(96, torch.float32, torch.device("cpu"))
    assert accelerator.pinned == [96]


# --- plans ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_the_ratio_is_met_to_the_alignment_and_nothing_is_lost(ratio):
    ranges = [Range(0, 320), Range(640, 704), Range(1000 * 32, 1100 * 32)]
    away, stays = split(ranges, ratio)
    total = sum(part.numel for part in ranges)
    assert abs(sum(part.numel for part in away) - ratio * total) <= ALIGNMENT_NUMEL / 2
    covered = [i for part in (*away, *stays) for i in range(part.start, part.stop)]
    assert covered == [i for part in ranges for i in range(part.start, part.stop)]
    assert all(part.start % ALIGNMENT_NUMEL == 0 for part in stays)


@pytest.mark.parametrize("numel", [1, 32, 100, 1000, 10**9])
def test_tiles_cover_a_range_in_aligned_steps(numel):
    found = tiles(Range(64, 64 + 992), numel)
    assert [i for part in found for i in range(part.start, part.stop)] == list(range(64, 64 + 992))
    assert all(part.start % ALIGNMENT_NUMEL == 0 for part in found)
    assert max(part.numel for part in found) <= max(numel, ALIGNMENT_NUMEL)


# --- config ---------------------------------------------------------------------------------------------------------


def section(zero: dict):
    return resolve(load({"train_batch_size": 1, "zero_optimization": zero}), Facts(1, 1))["zero_optimization"]


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 1, "offload_optimizer": {"device": "nvme"}}, "offload_optimizer.nvme_path is not set"),
        ({"stage": 3, "offload_param": {"device": "nvme"}}, "offload_param.nvme_path is not set"),
        ({"stage": 2, "offload_param": {"device": "cpu"}}, "offload_param.device cpu needs .*stage 3, got 2"),
        ({"stage": 0, "offload_optimizer": {"device": "cpu"}}, "offload_optimizer.device cpu needs .*stage 1, 2 or 3"),
        ({"stage": 1, "offload_optimizer": {"device": "cpu", "ratio": 1.5}}, "offload_optimizer.ratio"),
        ({"stage": 1, "offload_optimizer": {"device": "disk"}}, "offload_optimizer.device"),
        ({"stage": 1, "offload_optimizer": {"super_offload": True}}, "super_offload is not served"),
        ({"stage": 1, "offload_optimizer": {"cpuadam_cores_perc": 0.5}}, "cpuadam_cores_perc is not served"),
        ({"stage": 1, "sub_group_size": 0}, "sub_group_size"),
    ],
)
def test_what_cannot_be_served_is_refused(zero, message):
    with pytest.raises(ConfigError, match=message):
        section(zero)


def test_old_spellings_mean_the_new_ones():
    old = section({"stage": 3, "cpu_offload": True, "cpu_offload_param": True, "cpu_offload_use_pin_memory": False})
    assert (old.offload_optimizer.device, old.offload_param.device) == ("cpu", "cpu")
    assert old.offload_optimizer.pin_memory is False
    assert section({"stage": 1, "cpu_offload": False}).offload_optimizer.device == "none"
