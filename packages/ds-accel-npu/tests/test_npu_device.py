"""The device part of Ascend NPUs, against a stand-in for torch_npu.npu with its public interface.

Nothing here runs on an NPU.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_accel_npu.accelerator import NpuAccelerator
from ds_accel_npu.facts import facts, mismatches
from ds_accel_npu.machine import Machine, look, refusal
from ds_core.accelerator import Capability, candidates, select
from ds_core.errors import AcceleratorError
from ds_core.plugins import manager

HERE = Machine("25.2.0", "8.5.0", "2.13.0", "2.13.0+cpu", True)


class Stream:
    """A stream of the device."""


class Event:
    """An event of the device."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.enable_timing = enable_timing


class Graph:
    """NPUGraph."""

    def replay(self) -> str:
        return "replayed"


def adapter(count: int = 2, bf16: bool = True) -> tuple[types.ModuleType, list[str]]:
    """(torch_npu.npu, what was asked of it) with `count` devices, each with a generator of its own."""
    asked: list[str] = []
    state = {"current": 0}
    generators = [torch.Generator().manual_seed(index) for index in range(count)]
    properties = types.SimpleNamespace(name="Ascend910B3", total_memory=64 * 2**30)
    public: dict[str, Any] = {
        "is_available": lambda: count > 0,
        "device_count": lambda: count,
        "current_device": lambda: state["current"],
        "set_device": lambda index: state.update(current=index),
        "synchronize": lambda index=None: asked.append(f"synchronize {index}"),
        "get_device_name": lambda index: properties.name,
        "get_device_properties": lambda index: properties,
        "is_bf16_supported": lambda: bf16,
        "Stream": Stream,
        "Event": Event,
        "NPUGraph": Graph,
        "current_stream": lambda index: f"current of {index}",
        "default_stream": lambda index: f"default of {index}",
        "memory_allocated": lambda index: 10 + index,
        "max_memory_allocated": lambda index: 20 + index,
        "memory_reserved": lambda index: 30 + index,
        "mem_get_info": lambda index: (1, 64),
        "reset_peak_memory_stats": lambda index: asked.append(f"reset {index}"),
        "empty_cache": lambda: asked.append("empty_cache"),
        "get_rng_state": lambda index: generators[index].get_state(),
        "set_rng_state": lambda new, index: generators[index].set_state(new),
        "get_amp_supported_dtype": lambda: [torch.float16, torch.bfloat16],
    }
    module = types.ModuleType("npu")
    vars(module).update(public)
    return module, asked


def test_devices_are_chosen_and_waited_for() -> None:
    module, asked = adapter()
    made = NpuAccelerator(module)
    made.set_device(1)
    made.synchronize(1)
    assert (made.device_count(), made.current_device(), asked) == (2, 1, ["synchronize 1"])
    with pytest.raises(AcceleratorError, match="npu has devices 0 to 1, got 5"):
        made.set_device(5)


def test_memory_figures_and_cache() -> None:
    module, asked = adapter()
    made = NpuAccelerator(module)
    found = made.memory(1)
    assert (found.allocated_bytes, found.peak_bytes, found.total_bytes) == (11, 21, 64)
    assert made.reset_peak_memory(1)
    made.empty_cache()
    assert asked == ["reset 1", "empty_cache"]


def test_each_device_has_a_random_state_of_its_own() -> None:
    made = NpuAccelerator(adapter()[0])
    first, second = made.rng_state(0), made.rng_state(1)
    assert not torch.equal(first, second)
    made.set_rng_state(first, 1)
    assert torch.equal(made.rng_state(1), first)


def test_graphs_streams_and_events() -> None:
    made = NpuAccelerator(adapter()[0])
    assert made.graph().replay() == "replayed"
    assert isinstance(made.stream(), Stream)
    assert made.event().enable_timing
    assert (made.current_stream(1), made.default_stream(0)) == ("current of 1", "default of 0")


@pytest.mark.parametrize("bf16", [True, False])
def test_dtypes_follow_the_chip(bf16: bool) -> None:
    found = NpuAccelerator(adapter(bf16=bf16)[0]).dtypes()
    assert {torch.float32, torch.float16} <= found
    assert (torch.bfloat16 in found) == bf16


def test_what_it_claims() -> None:
    made = NpuAccelerator(adapter()[0])
    assert made.comm_backend() == "hccl"
    assert made.visible_devices_variable == "ASCEND_RT_VISIBLE_DEVICES"
    assert not made.has(Capability.COMPILE)
    assert made.compile_backend() is None
    assert made.properties(0) == {"name": "Ascend910B3", "memory": "64.0 GiB"}


@pytest.mark.parametrize(
    ("machine", "count", "reason"),
    [
        (Machine(torch="2.13.0+cpu"), None, r"torch_npu is not installed; pip install torch-npu==2\.13\.\*"),
        (Machine(torch="2.13.0", has_module=True), None, "no Ascend driver"),
        (Machine("25.2", "", "2.13.0", "2.13.0", True), None, r"CANN is not set up.*source its set_env\.sh"),
        (HERE, 0, "sees no device; ASCEND_RT_VISIBLE_DEVICES may hide them"),
    ],
)
def test_the_reason_says_what_to_do(machine: Machine, count: int | None, reason: str) -> None:
    with pytest.raises(AcceleratorError, match=reason):
        raise AcceleratorError(refusal(machine, count))


def test_nothing_speaks_against_a_device_that_is_there() -> None:
    assert refusal(HERE) == refusal(HERE, 8) == ""


def test_versions_are_read_where_the_packages_leave_them(tmp_path: Path) -> None:
    (tmp_path / "cann" / "compiler").mkdir(parents=True)
    (tmp_path / "cann" / "compiler" / "version.info").write_text("Version=8.5.0\nversion_dir=x\n")
    (tmp_path / "driver.info").write_text("package=driver\nVersion = 25.2.0\n")
    found = look({"ASCEND_TOOLKIT_HOME": str(tmp_path / "cann")}, tmp_path / "driver.info")
    assert (found.toolkit, found.driver) == ("8.5.0", "25.2.0")
    bare = look({"ASCEND_HOME_PATH": str(tmp_path / "none")}, tmp_path / "none")
    assert (bare.toolkit, bare.driver) == ("unknown version", "")
    assert look({}, tmp_path / "none").toolkit == ""


def test_the_adapter_follows_torch() -> None:
    assert mismatches(HERE) == []
    (found,) = mismatches(Machine("25.2.0", "8.5.0", "2.9.0", "2.13.0+cpu", True))
    assert (found.what, found.needs, found.found) == ("torch-npu", "2.13.*", "2.9.0")
    (missing,) = mismatches(Machine(torch="2.13.0"))
    assert (missing.found, missing.remedy) == ("none", "pip install torch-npu==2.13.*")


def test_here_it_says_why_it_is_not_used() -> None:
    (found,) = [c for c in candidates(manager()) if c.id == "ds-accel-npu:npu"]
    assert found.is_usable or found.reason
    assert facts().unproven


def test_asking_for_it_without_the_adapter_says_what_is_missing() -> None:
    if look().has_module:
        assert select("npu").name == "npu"
    else:
        with pytest.raises(AcceleratorError, match="torch_npu is not installed"):
            select("npu")
