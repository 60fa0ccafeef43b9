"""The host halves in the installed wheel: what they need, what they show, what is said where libsycl is missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from ds_accel_xpu.libraries import built, folder
from ds_accel_xpu.plugin import ds_ops

VERSIONS = sorted(built().libraries)
ALLOWED = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}

pytestmark = [
    pytest.mark.skipif(not VERSIONS, reason=f"no host half in the wheel: {built().left_out.get('sycl')}"),
    pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed"),
]


def readelf(sycl: str, *arguments: str) -> str:
    command = ["readelf", "--wide", *arguments, str(folder() / built().libraries[sycl])]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("sycl", VERSIONS)
def test_a_host_half_needs_its_libsycl_and_the_c_library(sycl: str) -> None:
    needed = set(re.findall(r"NEEDED.*\[(.+)\]", readelf(sycl, "--dynamic")))
    assert f"libsycl.so.{sycl}" in needed and needed - {f"libsycl.so.{sycl}"} <= ALLOWED
    assert "RPATH" not in readelf(sycl, "--dynamic") and "RUNPATH" not in readelf(sycl, "--dynamic")


@pytest.mark.parametrize("sycl", VERSIONS)
def test_a_host_half_exports_its_descriptor_and_nothing_else(sycl: str) -> None:
    rows = [line.split() for line in readelf(sycl, "--dyn-syms").splitlines() if re.match(r"\s+\d+:", line)]
    assert [row[7] for row in rows if len(row) > 7 and row[6] != "UND"] == ["ds_kernel_descriptor"]


@pytest.mark.parametrize("sycl", VERSIONS)
def test_the_op_table_is_what_the_plugin_offers(sycl: str) -> None:
    table = (folder().parent / "plugin.py").read_text()
    found = set(re.findall(r'^    "(\w+)",$', table, flags=re.MULTILINE))
    code = f"from ds_accel_xpu.libraries import library_for; print(*library_for({sycl!r}).kernels)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "which was not found" in done.stderr:
        pytest.skip(f"libsycl.so.{sycl} is not in the library path")
    assert set(done.stdout.split()) == found == {impl.op for impl in ds_ops()}, done.stderr


@pytest.mark.parametrize("sycl", VERSIONS)
def test_without_libsycl_the_error_says_what_brings_it(sycl: str) -> None:
    env = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    code = f"from ds_accel_xpu.libraries import library_for; library_for({sycl!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert f"the kernels of ds-accel-xpu need libsycl.so.{sycl} (libsycl {sycl}." in done.stderr
    assert "it comes with the wheel intel-sycl-rt" in done.stderr
