"""Kernels written for tile registers, on emulated ones: compiled here from the wheel's sources, run on every case."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ds_accel_cpu.ops._base import CallableKernel
from ds_accel_cpu.ops.matmul import run_linear
from ds_core.ops import native
from ds_core.testing import op_cases

COMPILER = shutil.which("c++") or shutil.which("g++")
KERNELS = Path(__file__).parent.parent / "csrc" / "kernels"
TABLE = """
#include "matmul/rows.h"
static const ds_kernel_entry kEntries[] = {{"linear_w8a8", 1, 1, dsk::linear_w8a8, dsk::linear_w8a8_workspace}};
static const ds_kernel_library kLibrary = {
    DS_KERNEL_MAGIC, DS_KERNEL_ABI_MAJOR, DS_KERNEL_ABI_MINOR, sizeof(ds_kernel_library), sizeof(ds_kernel_entry),
    1, 0, "emulated tiles", "test", kEntries};
extern "C" DS_KERNEL_EXPORT const ds_kernel_library* ds_kernel_descriptor(void) { return &kLibrary; }
"""

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler to build the emulation with")


def build(folder: Path, *flags: str) -> Callable[..., torch.Tensor]:
    assert COMPILER is not None
    (folder / "table.cpp").write_text(TABLE)
    path = folder / "libemulated.so"
    sources = [folder / "table.cpp", KERNELS / "matmul" / "w8a8.cpp"]
    common = ["-shared", "-fPIC", "-std=c++17", "-O1", "-ffp-contract=off", "-fno-math-errno", "-DDSK_EMULATE_TILES"]
    includes = [f"-I{KERNELS}", f"-I{native.include_dir()}"]
    subprocess.run([COMPILER, *common, *flags, *includes, *sources, "-o", path], check=True, timeout=300)
    return functools.partial(run_linear, CallableKernel(native.load(path), "linear_w8a8", "ds_linear_args"))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., torch.Tensor]:
    return build(tmp_path_factory.mktemp("emulated"))


def test_every_case_agrees_with_the_reference(emulated: Callable[..., torch.Tensor]) -> None:
    for case in op_cases.cases("linear_w8a8"):
        op_cases.check_kernel("linear_w8a8", case, emulated, "cpu")


def test_tiles_are_what_computes(tmp_path: Path, emulated: Callable[..., torch.Tensor]) -> None:
    # The same emulation with a wrong product: what goes through tiles changes, what does not stays.
    source = (KERNELS / "matmul" / "tiles.h").read_text()
    wrong = source.replace("static_cast<uint32_t>(left * right)", "static_cast<uint32_t>(left + right)")
    assert wrong != source
    (tmp_path / "matmul").mkdir()
    (tmp_path / "matmul" / "tiles.h").write_text(wrong)
    broken = build(tmp_path, f"-I{tmp_path}")
    for case in op_cases.cases("linear_w8a8"):
        if case.name in ("more_rows_int8_float32", "more_rows_int4_float32", "one_row_int8_float32"):
            call = op_cases.build("linear_w8a8", case)
            same = torch.equal(broken(**call.tensors, **call.scalars), emulated(**call.tensors, **call.scalars))
            assert same == (case.name == "one_row_int8_float32")
