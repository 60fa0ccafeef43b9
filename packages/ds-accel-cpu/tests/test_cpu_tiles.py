"""Kernels written for tile registers, on emulated ones: compiled here from the wheel's sources, run on every case."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ds_accel_cpu.launching import CpuLauncher
from ds_core.ops import native
from ds_core.ops.calls.matmul import MatmulOps
from ds_core.ops.case import OpCase
from ds_core.testing import op_cases

COMPILER = shutil.which("c++") or shutil.which("g++")
KERNELS = Path(__file__).parent.parent / "csrc" / "kernels"
TABLE = """
#include "matmul/rows.h"
static const ds_kernel_entry kEntries[] = {DSK_MATMUL_ROWS};
static const ds_kernel_library kLibrary = {
    DS_KERNEL_MAGIC, DS_KERNEL_ABI_MAJOR, DS_KERNEL_ABI_MINOR, sizeof(ds_kernel_library), sizeof(ds_kernel_entry),
    sizeof(kEntries) / sizeof(kEntries[0]), 0, "emulated tiles", "test", kEntries};
extern "C" DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &kLibrary; }
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build the emulation with")


def build(folder: Path, *flags: str) -> MatmulOps:
    assert COMPILER is not None
    (folder / "table.cpp").write_text(TABLE)
    path = folder / "libemulated.so"
    sources = [folder / "table.cpp", *(KERNELS / "matmul" / f"{op}.cpp" for op in ("w8a8", "weight_only"))]
    common = ["-shared", "-fPIC", "-std=c++17", "-O0", "-ffp-contract=off", "-fno-math-errno", "-DDSK_EMULATE_TILES"]
    includes = [f"-I{KERNELS}", f"-I{native.include_dir()}"]
    subprocess.run([COMPILER, *common, *flags, *includes, *sources, "-o", path], check=True, timeout=300)
    return MatmulOps(native.load(path), CpuLauncher())


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> MatmulOps:
    return build(tmp_path_factory.mktemp("emulated"))


def integer_cases(name: str) -> list[OpCase]:
    """Those whose weights are integers; the others are for devices that have kernels for them."""
    return [case for case in op_cases.cases(name) if case.scalars.get("format", "integer") == "integer"]


@pytest.mark.parametrize("name", ["linear_w8a8", "linear_weight_only"])
def test_every_case_agrees_with_the_reference(emulated: MatmulOps, name: str) -> None:
    for case in integer_cases(name):
        op_cases.check_kernel(name, case, getattr(emulated, name), "cpu")


def test_tiles_are_what_computes(tmp_path: Path, emulated: MatmulOps) -> None:
    # The same emulation with wrong products: what goes through tiles changes, what does not stays.
    source = (KERNELS / "matmul" / "tiles.h").read_text()
    wrong = source
    for right, mistake in (("(left * right)", "(left + right)"), ("(sums[0] + sums[1])", "(sums[0] - sums[1])")):
        assert right in source
        wrong = wrong.replace(right, mistake)
    (tmp_path / "matmul").mkdir()
    (tmp_path / "matmul" / "tiles.h").write_text(wrong)
    broken = build(tmp_path, f"-I{tmp_path}")
    for name in ("linear_w8a8", "linear_weight_only"):
        for case in integer_cases(name):
            if case.name.startswith(("more_rows_", "one_row_")) and case.name.endswith("bfloat16"):
                call = op_cases.build(name, case)
                got, want = (getattr(ops, name)(**call.tensors, **call.scalars) for ops in (broken, emulated))
                assert torch.equal(got, want) == case.name.startswith("one_row_"), (name, case.name)
