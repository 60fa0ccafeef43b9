"""`XpuAccelerator` over a fake of torch.xpu; nothing here ran on an Intel GPU."""

from __future__ import annotations

import inspect

import pytest
import torch
from fake_torch_xpu import GIB, FakeXpu

from ds_accel_xpu.accelerator import XpuAccelerator, devices_seen
from ds_core.accelerator import Capability, MemorySnapshot
from ds_core.errors import AcceleratorError

FUNCTIONS = sorted(
    name for name, value in vars(FakeXpu).items() if inspect.isfunction(value) and name[0] != "_" and name != "allocate"
)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_fake_takes_what_the_installed_torch_takes(name: str) -> None:
    ours = inspect.signature(getattr(FakeXpu(), name)).parameters
    theirs = inspect.signature(getattr(torch.xpu, name)).parameters
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_a_stream_of_torch_has_the_address_of_its_queue() -> None:
    assert "sycl_queue" in inspect.getsource(torch.xpu.Stream)


def test_devices_are_those_of_torch() -> None:
    xpu = XpuAccelerator(FakeXpu(count=3))
    assert (xpu.device_count(), xpu.current_device()) == (3, 0)
    xpu.set_device(2)
    assert xpu.current_device() == 2 and xpu.device() == torch.device("xpu", 2)


def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(AcceleratorError, match="xpu has devices 0 to 1, got 2"):
        XpuAccelerator(FakeXpu(count=2)).set_device(2)


def test_properties_are_what_the_driver_says() -> None:
    found = XpuAccelerator(FakeXpu()).properties()
    assert found["name"] == "Intel(R) Data Center GPU Max 1550"
    assert (found["driver_version"], found["has_fp64"]) == ("1.6.33578", "True")


def test_synchronize_waits_for_the_device_that_is_named() -> None:
    fake = FakeXpu()
    XpuAccelerator(fake).synchronize(1)
    assert [device.waits for device in fake.devices] == [0, 1]


def test_memory_figures_and_a_new_peak() -> None:
    fake = FakeXpu()
    fake.allocate(3 * GIB)
    fake.allocate(-2 * GIB)
    xpu = XpuAccelerator(fake)
    assert xpu.memory(0) == MemorySnapshot(1 * GIB, 3 * GIB, 64 * GIB)
    assert xpu.reset_peak_memory(0) and xpu.memory(0).peak_bytes == 1 * GIB
    assert xpu.memory(1) == MemorySnapshot(0, 0, 64 * GIB)


def test_random_state_comes_back_on_its_device() -> None:
    fake = FakeXpu()
    xpu = XpuAccelerator(fake)
    xpu.manual_seed(5)
    state = xpu.rng_state(1)
    xpu.manual_seed(6)
    xpu.set_rng_state(state, 1)
    assert [int(device.rng[0]) for device in fake.devices] == [6, 5]


def test_seeding_seeds_the_host_too() -> None:
    xpu = XpuAccelerator(FakeXpu())
    xpu.manual_seed(5)
    first = torch.rand(3)
    xpu.manual_seed(5)
    assert torch.equal(torch.rand(3), first)


@pytest.mark.parametrize("has_fp64", [True, False])
def test_float64_is_what_the_device_says(has_fp64: bool) -> None:
    xpu = XpuAccelerator(FakeXpu(has_fp64=has_fp64))
    assert (torch.float64 in xpu.dtypes()) == has_fp64 == xpu.has_float64()
    assert {torch.float32, torch.bfloat16, torch.float16} <= xpu.dtypes()


def test_streams_and_events_are_torchs() -> None:
    fake = FakeXpu()
    xpu = XpuAccelerator(fake)
    stream = xpu.stream()
    assert isinstance(stream, FakeXpu.Stream) and stream.sycl_queue
    with xpu.use_stream(stream):
        assert fake.log == ["stream entered"]
    assert fake.log[-1] == "stream left"
    assert xpu.event().enable_timing


def test_graphs_are_an_ability_where_torch_has_them() -> None:
    class WithGraphs(FakeXpu):
        XPUGraph = object

    assert XpuAccelerator(WithGraphs()).has(Capability.GRAPHS)
    assert not XpuAccelerator(FakeXpu()).has(Capability.GRAPHS)


def test_collectives_are_xccl_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    xpu = XpuAccelerator(FakeXpu())
    for built, backend in ((True, "xccl"), (False, "gloo")):
        monkeypatch.setattr(torch.distributed, "is_xccl_available", lambda built=built: built)
        assert xpu.comm_backend() == backend


def test_the_cache_is_emptied() -> None:
    fake = FakeXpu()
    XpuAccelerator(fake).empty_cache()
    assert fake.log == ["empty_cache"]


def test_devices_that_torch_sees_are_counted_and_hidden_ones_explained() -> None:
    assert devices_seen(FakeXpu(count=2)).device_count == 2
    none = devices_seen(FakeXpu(count=0))
    assert not none.usable and "ZE_AFFINITY_MASK" in none.reason
