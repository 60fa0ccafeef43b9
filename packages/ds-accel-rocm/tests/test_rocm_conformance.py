"""Every conformance case with waves of 64 lanes, under emulation: nothing here runs on a GPU."""

from __future__ import annotations

from functools import cache

import pytest

from ds_accel_rocm.libraries import built, emulated
from ds_core.ops.calls import HostLauncher, KernelOps
from ds_core.ops.table import OPS
from ds_core.testing import op_cases


@cache
def kernels() -> KernelOps:
    return KernelOps(emulated(), HostLauncher())


def test_waves_have_64_lanes() -> None:
    assert emulated().target == "emulated, warps of 64"


@pytest.mark.parametrize("name", [name for name in OPS if name in built().rows])
def test_every_case_agrees_with_the_reference(name: str) -> None:
    for case in op_cases.cases(name):
        op_cases.check_kernel(name, case, getattr(kernels(), name), "cpu")
