"""Gaudi's device part, against a stand-in for habana_frameworks with the interface that its documentation states.

Nothing here runs on a Gaudi.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_accel_hpu.accelerator import HpuAccelerator
from ds_accel_hpu.facts import facts, mismatches
from ds_accel_hpu.machine import Machine, look, refusal
from ds_core.accelerator import Capability, candidates, select
from ds_core.errors import AcceleratorError
from ds_core.plugins import manager

HERE = Machine("1.23.0-5c1b8f1", "1.23.0.695", "2.9.0", True, 8)


class Graph:
    """HPUGraph: capture_begin, capture_end, replay."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def capture_begin(self) -> None:
        self.calls.append("begin")

    def capture_end(self) -> None:
        self.calls.append("end")

    def replay(self) -> None:
        self.calls.append("replay")


class Stream:
    """A stream; as a context it becomes the current one."""


class Event:
    """An event of the device."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing


def bridge(name: str = "GAUDI3") -> tuple[types.ModuleType, types.ModuleType, list[str]]:
    """(habana_frameworks.torch.hpu, habana_frameworks.torch.core, what was asked of both) with one device."""
    asked: list[str] = []
    hpu, core, random = (types.ModuleType(each) for each in ("hpu", "core", "hpu.random"))
    generator = torch.Generator().manual_seed(1)
    documented: dict[str, Any] = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda: name,
        "synchronize": lambda: asked.append("synchronize"),
        "Stream": Stream,
        "Event": Event,
        "HPUGraph": Graph,
        "memory_allocated": lambda index: 100,
        "max_memory_allocated": lambda index: 200,
        "mem_get_info": lambda index: (96, 128),
        "reset_peak_memory_stats": lambda index: asked.append(f"reset {index}"),
        "random": random,
    }
    vars(hpu).update(documented)
    vars(core).update({"mark_step": lambda: asked.append("mark_step")})
    states: dict[str, Any] = {
        "get_rng_state": lambda index: generator.get_state(),
        "set_rng_state": lambda state, index: generator.set_state(state),
    }
    vars(random).update(states)
    return hpu, core, asked


def accelerator(name: str = "GAUDI3") -> HpuAccelerator:
    return HpuAccelerator(*bridge(name)[:2])


def test_waiting_gives_gathered_work_to_the_device_first() -> None:
    hpu, core, asked = bridge()
    HpuAccelerator(hpu, core).synchronize()
    assert asked == ["mark_step", "synchronize"]


def test_a_process_has_one_device() -> None:
    made = accelerator()
    assert (made.device_count(), made.current_device()) == (1, 0)
    with pytest.raises(AcceleratorError, match="hpu has devices 0 to 0, got 1"):
        made.set_device(1)


def test_memory_figures() -> None:
    hpu, core, asked = bridge()
    made = HpuAccelerator(hpu, core)
    found = made.memory()
    assert (found.allocated_bytes, found.peak_bytes, found.total_bytes) == (100, 200, 128)
    assert made.reset_peak_memory()
    assert asked == ["reset 0"]
    made.empty_cache()


def test_random_state_comes_back() -> None:
    made = accelerator()
    state = made.rng_state()
    made.set_rng_state(torch.Generator().manual_seed(2).get_state())
    assert not torch.equal(made.rng_state(), state)
    made.set_rng_state(state)
    assert torch.equal(made.rng_state(), state)


def test_graphs_streams_and_events() -> None:
    made = accelerator()
    graph = made.graph()
    graph.capture_begin()
    graph.capture_end()
    graph.replay()
    assert graph.calls == ["begin", "end", "replay"]
    assert isinstance(made.stream(), Stream)
    assert made.event().enable_timing


def test_collectives_and_compiling_are_the_bridges() -> None:
    made = accelerator()
    assert made.has(Capability.COLLECTIVES)
    assert (made.comm_backend(), made.compile_backend()) == ("hccl", "hpu_backend")


@pytest.mark.parametrize(("name", "half"), [("GAUDI", False), ("GAUDI2", True), ("GAUDI3", True)])
def test_dtypes_follow_the_generation(name: str, half: bool) -> None:
    found = accelerator(name).dtypes()
    assert {torch.float32, torch.bfloat16} <= found
    assert (torch.float16 in found) == (torch.float8_e4m3fn in found) == half
    assert torch.float64 not in found


def test_raw_addresses_and_shared_storages_are_not_claimed() -> None:
    made = accelerator()
    assert not made.has(Capability.DATA_PTR)
    assert not made.has(Capability.STORAGE_ALIASING)


@pytest.mark.parametrize(
    ("machine", "count", "reason"),
    [
        (Machine(torch="2.13.0"), None, "habana_frameworks.* is not installed; use Intel's Gaudi container"),
        (Machine(has_module=True), None, "the kernel module habanalabs is not loaded"),
        (HERE, 0, "sees no device; HABANA_VISIBLE_MODULES may hide them"),
    ],
)
def test_the_reason_says_what_to_do(machine: Machine, count: int | None, reason: str) -> None:
    with pytest.raises(AcceleratorError, match=reason):
        raise AcceleratorError(refusal(machine, count))


def test_nothing_speaks_against_a_device_that_is_there() -> None:
    assert refusal(HERE) == refusal(HERE, 1) == ""


def test_the_driver_is_read_where_the_kernel_says_it(tmp_path: Path) -> None:
    (tmp_path / "version").write_text("1.23.0-5c1b8f1\n")
    (tmp_path / "accel0").touch()
    found = look(tmp_path / "version", f"{tmp_path}/accel[0-9]*")
    assert (found.driver, found.nodes) == ("1.23.0-5c1b8f1", 1)
    assert look(tmp_path / "none", f"{tmp_path}/hl*").driver == ""


def test_driver_and_bridge_are_of_one_release() -> None:
    assert mismatches(HERE) == []
    (found,) = mismatches(Machine("1.21.3-x", "1.23.0.695", "2.9.0", True, 8))
    assert (found.what, found.needs, found.found) == ("driver", "release 1.23", "1.21.3-x")
    assert "Install the release 1.23 of the driver" in found.remedy


def test_here_it_says_why_it_is_not_used() -> None:
    (found,) = [c for c in candidates(manager()) if c.id == "ds-accel-hpu:hpu"]
    assert found.is_usable or found.reason
    assert facts().unproven


def test_asking_for_it_without_the_bridge_says_what_is_missing() -> None:
    if look().has_module:
        assert select("hpu").name == "hpu"
    else:
        with pytest.raises(AcceleratorError, match="habana_frameworks"):
            select("hpu")
