"""The device part, against a stand-in for the torch.cuda of a ROCm build. No GPU is used."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from ds_accel_rocm.accelerator import RocmAccelerator
from ds_accel_rocm.facts import kernel_mismatches, mismatches
from ds_accel_rocm.libraries import Built, built, emulated
from ds_accel_rocm.machine import Driver, find_driver, refusal
from ds_core.accelerator import Capability, candidates
from ds_core.accelerator.torch_build import TorchBuild
from ds_core.errors import AcceleratorError
from ds_core.ops.table import OPS
from ds_core.plugins import manager

ROCM = TorchBuild("2.13.0+rocm7.1", hip="7.1.1")
DRIVER = Driver(version="6.16.6")
WHEEL = Built((), Path("/dsk.so"), "HIP 7.1", ("gfx90a", "gfx942"), {})


def gpu(arch: str = "gfx942:sramecc+:xnack-") -> types.ModuleType:
    """What torch.cuda answers on a machine with one AMD GPU."""
    properties = types.SimpleNamespace(
        name="AMD Instinct", gcnArchName=arch, multi_processor_count=304, total_memory=192 * 2**30
    )
    module = types.ModuleType("cuda")
    answers: dict[str, Any] = {
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_properties": lambda index: properties,
    }
    vars(module).update(answers)
    return module


def test_it_is_torchs_cuda_under_another_name() -> None:
    accelerator = RocmAccelerator(gpu())
    assert (accelerator.name, accelerator.device_type, accelerator.comm_backend()) == ("rocm", "cuda", "nccl")
    assert str(accelerator.device()) == "cuda:0"
    assert accelerator.has(Capability.GRAPHS)


def test_properties_name_the_architecture() -> None:
    found = RocmAccelerator(gpu()).properties()
    assert (found["architecture"], found["memory"]) == ("gfx942:sramecc+:xnack-", "192.0 GiB")


@pytest.mark.parametrize(("arch", "fp8"), [("gfx90a", False), ("gfx942:xnack-", False), ("gfx950:xnack-", True)])
def test_dtypes_follow_the_architecture(arch: str, fp8: bool) -> None:
    found = RocmAccelerator(gpu(arch)).dtypes()
    assert torch.bfloat16 in found
    assert (torch.float8_e4m3fn in found) == fp8


@pytest.mark.parametrize(
    ("build", "driver", "count", "reason"),
    [
        (TorchBuild(), DRIVER, None, "torch is not installed"),
        (TorchBuild("2.13.0+cpu"), DRIVER, None, r"torch 2\.13\.0\+cpu is built without ROCm; install a ROCm build"),
        (ROCM, Driver("/dev/kfd does not exist; install it"), None, "no AMD GPU driver: /dev/kfd does not exist"),
        (ROCM, DRIVER, 0, "sees no GPU"),
    ],
)
def test_the_reason_says_what_to_do(build: TorchBuild, driver: Driver, count: int | None, reason: str) -> None:
    with pytest.raises(AcceleratorError, match=reason):
        raise AcceleratorError(refusal(build, driver, count))


def test_a_variable_that_hides_every_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "-1")
    assert "with HIP_VISIBLE_DEVICES='-1'" in refusal(ROCM, DRIVER, 0)


def test_nothing_speaks_against_a_gpu_that_is_there() -> None:
    assert refusal(ROCM, DRIVER) == refusal(ROCM, DRIVER, 1) == ""


def test_the_driver_is_its_node_and_the_version_of_the_module(tmp_path: Path) -> None:
    missing = find_driver(tmp_path / "version", tmp_path / "kfd")
    assert "kfd does not exist; install the amdgpu driver" in missing.error
    (tmp_path / "kfd").touch()
    (tmp_path / "version").write_text("6.16.6\n")
    assert str(find_driver(tmp_path / "version", tmp_path / "kfd")) == "amdgpu 6.16.6"


def test_devices_without_code_are_told() -> None:
    assert kernel_mismatches(WHEEL, ["gfx942:sramecc+:xnack-", "gfx90a"]) == []
    (found,) = kernel_mismatches(WHEEL, ["gfx942", "gfx1100"])
    assert (found.what, found.needs, found.found) == ("device 1", "one of gfx90a, gfx942", "gfx1100")
    assert kernel_mismatches(Built((), None, "", (), {"rocm": "no hipcc"}), ["gfx1100"]) == []


def test_every_mismatch_is_told() -> None:
    found = mismatches(WHEEL, TorchBuild("2.13.0+cpu"), ["gfx803"])
    assert [each.what for each in found] == ["torch", "device 0"]


def test_the_record_of_the_build_names_the_rows_that_the_library_has() -> None:
    assert set(built().rows) == set(emulated().kernels)
    assert {name for name, op in OPS.items() if not op.by_torch} <= set(built().rows)


def test_here_it_is_installed_and_says_why_it_is_not_used() -> None:
    (found,) = [c for c in candidates(manager()) if c.id == "ds-accel-rocm:rocm"]
    if torch.version.hip is None:
        assert not found.is_usable
        assert "is built without ROCm" in found.reason
    else:
        assert found.is_usable or found.reason
