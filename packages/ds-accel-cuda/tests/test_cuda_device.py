"""The device part, against a stand-in for torch.cuda with the answers its documentation states. No GPU is used."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_accel_cuda.accelerator import CudaAccelerator
from ds_accel_cuda.facts import choose_build, kernel_mismatches, mismatches
from ds_accel_cuda.libraries import Built, CudaBuild, built, emulated
from ds_accel_cuda.machine import Driver, refusal
from ds_core.accelerator import Capability, candidates
from ds_core.accelerator.torch_build import TorchBuild
from ds_core.errors import AcceleratorError
from ds_core.hooks import Mismatch
from ds_core.ops.table import OPS
from ds_core.plugins import manager

CUDA = TorchBuild("2.13.0+cu130", cuda="13.0")
DRIVER = Driver("", (13, 0), "580.65.06")
NEW = CudaBuild(Path("/new.so"), "13.0.88", ("sm_75", "sm_90"), "compute_90")
OLD = CudaBuild(Path("/old.so"), "12.9.86", ("sm_70",), "")
WHEEL = Built((), {12: OLD, 13: NEW}, {}, {})


def gpu(capability: tuple[int, int] = (9, 0), count: int = 2, bf16: bool = True) -> types.ModuleType:
    """What torch.cuda answers on a machine with `count` GPUs."""
    module = types.ModuleType("cuda")
    state: dict[str, Any] = {"current": 0, "synchronized": [], "reset": []}
    properties = types.SimpleNamespace(
        name="GPU", major=capability[0], minor=capability[1], multi_processor_count=132, total_memory=80 * 2**30
    )
    answers: dict[str, Any] = {
        "state": state,
        "device_count": lambda: count,
        "current_device": lambda: state["current"],
        "set_device": lambda index: state.update(current=index),
        "synchronize": lambda index=None: state["synchronized"].append(index),
        "is_bf16_supported": lambda including_emulation=True: bf16 or including_emulation,
        "get_device_capability": lambda index=None: capability,
        "get_device_properties": lambda index: properties,
        "memory_allocated": lambda index: 10 + index,
        "max_memory_allocated": lambda index: 20 + index,
        "memory_reserved": lambda index: 30 + index,
        "mem_get_info": lambda index: (5, 80 * 2**30),
        "reset_peak_memory_stats": lambda index: state["reset"].append(index),
        "current_stream": lambda index: f"stream of {index}",
        "get_rng_state": lambda index: torch.tensor([index], dtype=torch.uint8),
    }
    vars(module).update(answers)
    return module


def test_devices_are_counted_chosen_and_waited_for() -> None:
    module = gpu()
    accelerator = CudaAccelerator(module)
    accelerator.set_device(1)
    accelerator.synchronize(1)
    assert (accelerator.device_count(), accelerator.current_device()) == (2, 1)
    assert str(accelerator.device()) == "cuda:1"
    assert module.state["synchronized"] == [1]
    with pytest.raises(AcceleratorError, match="cuda has devices 0 to 1, got 2"):
        accelerator.set_device(2)


def test_memory_figures_are_those_of_the_device_asked_for() -> None:
    module = gpu()
    accelerator = CudaAccelerator(module)
    found = accelerator.memory(1)
    assert (found.allocated_bytes, found.peak_bytes, found.total_bytes) == (11, 21, 80 * 2**30)
    assert accelerator.reset_peak_memory(1)
    assert module.state["reset"] == [1]


def test_random_state_is_that_of_the_device() -> None:
    assert CudaAccelerator(gpu()).rng_state(1).tolist() == [1]


@pytest.mark.parametrize(
    ("capability", "bf16", "fp8"), [((7, 0), False, False), ((8, 0), True, False), ((8, 9), True, True)]
)
def test_dtypes_follow_the_generation(capability: tuple[int, int], bf16: bool, fp8: bool) -> None:
    found = CudaAccelerator(gpu(capability, bf16=bf16)).dtypes()
    assert {torch.float32, torch.float16, torch.float64} <= found
    assert (torch.bfloat16 in found) == bf16
    assert (torch.float8_e4m3fn in found) == fp8


def test_properties_name_the_product() -> None:
    found = CudaAccelerator(gpu()).properties(0)
    assert found["name"] == "GPU"
    assert (found["compute capability"], found["memory"]) == ("9.0", "80.0 GiB")


def test_what_it_claims() -> None:
    accelerator = CudaAccelerator(gpu())
    assert accelerator.has(Capability.STREAMS)
    assert accelerator.current_stream(1) == "stream of 1"
    assert accelerator.visible_devices_variable == "CUDA_VISIBLE_DEVICES"
    assert accelerator.comm_backend() == "nccl"


# ---- why it cannot be used


@pytest.mark.parametrize(
    ("build", "driver", "count", "reason"),
    [
        (TorchBuild(), DRIVER, None, "torch is not installed"),
        (TorchBuild("2.13.0+cpu"), DRIVER, None, r"torch 2\.13\.0\+cpu is built without CUDA; install a CUDA build"),
        (TorchBuild("2.13.0", hip="7.1"), DRIVER, None, "is built for ROCm; ds-accel-rocm serves it"),
        (CUDA, Driver("libcuda.so.1 cannot be loaded (no such file)"), None, "no NVIDIA driver: libcuda"),
        (CUDA, DRIVER, 0, r"torch 2\.13\.0\+cu130 sees no GPU.*driver \(580\.65\.06, runs CUDA up to 13\.0\)"),
    ],
)
def test_the_reason_says_what_to_do(build: TorchBuild, driver: Driver, count: int | None, reason: str) -> None:
    with pytest.raises(AcceleratorError, match=reason):
        raise AcceleratorError(refusal(build, driver, count))


def test_a_variable_that_hides_every_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "with CUDA_VISIBLE_DEVICES=''" in refusal(CUDA, DRIVER, 0)


def test_nothing_speaks_against_a_gpu_that_is_there() -> None:
    assert refusal(CUDA, DRIVER) == refusal(CUDA, DRIVER, 1) == ""


def test_here_it_is_installed_and_says_why_it_is_not_used() -> None:
    (found,) = [c for c in candidates(manager()) if c.id == "ds-accel-cuda:cuda"]
    if torch.version.cuda is None:
        assert not found.is_usable
        assert "is built without CUDA" in found.reason
    else:
        assert found.is_usable or found.reason


def test_the_record_of_the_build_names_the_rows_that_the_library_has() -> None:
    assert set(built().rows) == set(emulated().kernels)


def test_every_op_of_the_table_that_torch_does_not_bring_has_a_kernel() -> None:
    assert {name for name, op in OPS.items() if not op.by_torch} <= set(built().rows)


# ---- what does not fit


def test_the_library_is_of_the_newest_cuda_the_driver_runs() -> None:
    assert choose_build(WHEEL, DRIVER) is NEW
    assert choose_build(WHEEL, Driver("", (12, 4), "550.1")) is OLD
    assert choose_build(WHEEL, Driver("", (11, 0), "450.1")) is OLD
    assert choose_build(WHEEL, Driver("no driver")) is OLD
    assert choose_build(Built((), {}, {}, {"cuda": "no compiler"}), DRIVER) is None


def test_a_driver_that_is_too_old() -> None:
    (found,) = kernel_mismatches(NEW, Driver("", (12, 4), "550.54.14"), [])
    assert found == Mismatch(
        "NVIDIA driver",
        "CUDA 13.0.88",
        "driver 580 or newer, which runs CUDA 13",
        "550.54.14, runs CUDA up to 12.4",
        "Install driver 580 or newer.",
    )


@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (10, 0), (12, 0)])
def test_devices_that_machine_code_or_ptx_covers(capability: tuple[int, int]) -> None:
    assert kernel_mismatches(NEW, DRIVER, [capability]) == []


@pytest.mark.parametrize("capability", [(6, 1), (7, 0), (8, 0)])
def test_devices_that_nothing_covers(capability: tuple[int, int]) -> None:
    (found,) = kernel_mismatches(NEW, DRIVER, [capability])
    assert (found.what, found.needs) == ("device 0", "compute capability 7.5 or newer")


def test_every_mismatch_is_told() -> None:
    found = mismatches(WHEEL, TorchBuild("2.13.0+cpu"), Driver("", (11, 0), "450.1"), [(6, 1)])
    assert [each.what for each in found] == ["torch", "NVIDIA driver", "device 0"]
