from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ds_accel_xpu import plugin
from ds_accel_xpu.facts import UNPROVEN, describe
from ds_accel_xpu.libraries import Built, built, library_for, why_no_kernels
from ds_accel_xpu.signs import Signs
from ds_core.accelerator import candidates, choose
from ds_core.errors import AcceleratorError, PluginError
from ds_core.hooks import Proof
from ds_core.ops.table import OPS
from ds_core.plugins import manager

RECORD = Built({"8": "libdsk_xpu_sycl8.so"}, ("optim.spv",), "clang version 15.0.6", {"8": "libsycl 8.0"}, {})
HERE = pytest.mark.skipif(torch.xpu._is_compiled(), reason="this torch was built for XPU")


def test_importing_and_probing_import_no_torch() -> None:
    code = (
        "import sys\n"
        "from ds_accel_xpu import plugin\n"
        "(entry,) = plugin.ds_accelerators()\n"
        "entry.is_available(), list(plugin.ds_ops())\n"
        "from ds_accel_xpu.facts import facts\n"
        "facts()\n"
        "print('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ("True\n" if torch.xpu.is_available() else "False\n")


def test_it_is_discovered_in_good_order() -> None:
    (record,) = manager().find("ds-accel-xpu")
    assert record.is_active and not record.is_problem, record.describe()


@HERE
def test_without_xpu_in_torch_it_says_so_and_what_to_install() -> None:
    (found,) = (c for c in candidates(manager()) if c.entry.name == "xpu")
    assert not found.is_usable
    assert f"torch {torch.__version__} was built without XPU" in found.reason and "pip install torch" in found.reason


@HERE
def test_asking_for_it_where_it_is_not_usable_is_an_error_with_the_reason() -> None:
    with pytest.raises(AcceleratorError, match=r"installed but not usable here: torch .* was built without XPU"):
        choose("xpu", environ={})


def test_a_probe_that_fails_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Signs:
        raise OSError("no /sys")

    monkeypatch.setattr("ds_accel_xpu.signs.read_signs", broken)
    answer = plugin._is_available()
    assert not answer.usable and answer.reason == "asking for devices failed: OSError: no /sys"


def test_ops_are_offered_where_there_are_kernels_for_them() -> None:
    offered = list(plugin.ds_ops())
    assert bool(offered) == (not why_no_kernels())
    assert {impl.op for impl in offered} <= set(OPS)
    assert {impl.device_type for impl in offered} <= {"xpu"}
    assert {impl.proof for impl in offered} <= {Proof.EXECUTED}


@pytest.mark.parametrize(
    ("record", "sycl", "told"),
    [
        (RECORD, "8", ""),
        (RECORD, "9", "torch uses libsycl 9, and ds-accel-xpu has kernels for 8"),
        (Built({}, (), "", {}, {"spirv": "no clang"}), "8", "this build of ds-accel-xpu has no kernels: no clang"),
    ],
)
def test_why_kernels_do_not_run(monkeypatch: pytest.MonkeyPatch, record: Built, sycl: str, told: str) -> None:
    monkeypatch.setattr("ds_accel_xpu.libraries.built", lambda: record)
    assert why_no_kernels(sycl).startswith(told) and bool(why_no_kernels(sycl)) == bool(told)


def test_a_library_for_another_libsycl_is_not_there() -> None:
    with pytest.raises(PluginError, match="ds-accel-xpu"):
        library_for("1")


def test_the_record_says_why_what_is_missing_was_left_out() -> None:
    record = built()
    assert record.libraries or record.left_out["sycl"]
    assert record.spirv or record.left_out["spirv"]


def test_the_report_has_driver_loader_torch_and_what_it_was_built_for() -> None:
    signs = Signs("2.13.0+xpu", True, ("renderD128",), (), "xe 1.1", True)
    found = describe(signs, "8", RECORD)
    assert found.built_for == "SPIR-V 1.2 (clang version 15.0.6), libsycl 8.0"
    assert found.driver == "xe 1.1" and found.mismatches == []
    assert found.libraries["torch"] == "2.13.0+xpu, libsycl 8" and found.libraries["Level Zero loader"] == "found"
    assert found.unproven == UNPROVEN


def test_the_report_has_every_mismatch_with_its_remedy() -> None:
    signs = Signs("2.13.0+xpu", True, ("renderD128",), (), "xe 1.1", loader=False)
    libsycl, driver = describe(signs, "9", RECORD).mismatches
    assert (libsycl.what, libsycl.needs, libsycl.found) == ("libsycl", "libsycl 8", "libsycl 9")
    assert libsycl.remedy.startswith("Install a ds-accel-xpu that was built against libsycl 9;")
    assert (driver.what, driver.found) == ("driver", "no Level Zero loader (libze_loader.so.1)")
    assert driver.remedy.startswith("Install Intel's GPU driver packages")


def test_the_report_says_that_torch_has_no_xpu() -> None:
    (torch_build,) = describe(Signs("2.13.0+cpu"), None, RECORD).mismatches
    assert (torch_build.what, torch_build.found) == ("torch", "2.13.0+cpu, without XPU")
    assert torch_build.remedy.startswith("Run: pip install torch")


def test_what_was_left_out_of_the_wheel_is_in_the_report() -> None:
    record = Built({}, (), "", {}, {"spirv": "no clang", "sycl": "there is no SPIR-V to hand to a device"})
    found = describe(Signs("2.13.0+cpu"), None, record)
    assert found.left_out == ["spirv: no clang", "sycl: there is no SPIR-V to hand to a device"]
    assert found.built_for == ""
