"""The shipped library: what it needs, what it shows, and how it reaches the HIP runtime of another wheel."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ds_accel_rocm.libraries import built

COMPILER = shutil.which("cc") or shutil.which("gcc")
PATH = built().path

pytestmark = pytest.mark.skipif(PATH is None, reason=f"no library in this wheel: {built().left_out.get('rocm')}")

RUNTIME = r"""
#include <stdio.h>
#include <stddef.h>
typedef struct { unsigned x, y, z; } dim3;
static int binaries = 0, functions = 0;
static void* handle[64];
void** __hipRegisterFatBinary(const void* data) { return &handle[binaries++]; }
void __hipUnregisterFatBinary(void** module) {}
void __hipRegisterFunction(void** module, const void* host, char* device, const char* name, unsigned limit, void* a,
                           void* b, void* c, void* d, int* wave) {
  if (module < handle || module >= handle + binaries) printf("a function of no binary\n");
  ++functions;
}
int hipLaunchKernel(const void* f, dim3 grid, dim3 block, void** arguments, size_t shared, void* stream) {
  printf("launch after %s registrations on stream %ld\n", binaries && functions >= binaries ? "all" : "too few",
         (long)stream);
  fflush(stdout);
  return STATUS;
}
int hipMemsetAsync(void* m, int value, size_t bytes, void* stream) { return 0; }
int hipMemcpyAsync(void* to, const void* from, size_t bytes, int kind, void* stream) { return 0; }
int hipGetLastError(void) { return 0; }
const char* hipGetErrorString(int error) { return "a stand-in fails on purpose"; }
int hipGetDevice(int* device) { *device = 0; return 0; }
int hipDeviceGetAttribute(int* value, int attribute, int device) { *value = 64; return 0; }
"""

PROGRAM = """
import ctypes, sys
import torch
from ds_accel_rocm.libraries import built
from ds_core.ops.calls import KernelOps, StreamLauncher
from ds_core.ops.native import load
ops = KernelOps(load(built().path), StreamLauncher(lambda device: 7))
if len(sys.argv) > 1:
    ctypes.CDLL(sys.argv[1])  # as torch has loaded its own by then
try:
    ops.rms_norm_forward(torch.ones(2, 64), torch.ones(64), 1e-5)
    print("done")
except RuntimeError as error:
    print(error)
"""


def runtime(folder: Path, status: int) -> Path:
    """A HIP runtime that launches nothing and says what it was asked."""
    assert COMPILER is not None
    (folder / "runtime.c").write_text(RUNTIME)
    path = folder / "libamdhip64-0123abcd.so.6"
    subprocess.run(
        [COMPILER, "-shared", "-fPIC", f"-DSTATUS={status}", "runtime.c", "-o", path], check=True, cwd=folder
    )
    return path


def run(*arguments: Path) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()


def test_no_rocm_and_no_torch_is_linked() -> None:
    reader = shutil.which("readelf")
    if reader is None:
        pytest.skip("readelf, which shows what a library needs, is not installed")
    text = subprocess.run([reader, "-d", str(PATH)], capture_output=True, text=True, check=True).stdout
    needed = [line for line in text.splitlines() if "(NEEDED)" in line]
    assert needed
    assert not [line for line in needed if "hip" in line or "torch" in line or "roc" in line]


def test_one_symbol_is_shown() -> None:
    reader = shutil.which("nm")
    if reader is None:
        pytest.skip("nm, which lists symbols, is not installed")
    command = [reader, "-D", "--defined-only", str(PATH)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1].partition("@")[0] for line in text.splitlines()] == ["ds_kernel_descriptor"]


@pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a stand-in for the runtime with")
def test_the_runtime_that_is_loaded_gets_every_kernel_before_the_first_launch(tmp_path: Path) -> None:
    said = run(runtime(tmp_path, status=0))
    assert said[-1] == "done"
    assert said[0] == "launch after all registrations on stream 7"


@pytest.mark.skipif(COMPILER is None, reason="no C compiler to make a stand-in for the runtime with")
def test_a_launch_that_fails_is_an_error(tmp_path: Path) -> None:
    assert "the device runtime failed: a stand-in fails on purpose" in run(runtime(tmp_path, status=98))[-1]


def test_without_a_runtime_the_library_loads_and_a_call_says_it_failed() -> None:
    if any(Path(folder).glob("libamdhip64.so*") for folder in ("/opt/rocm/lib", "/usr/lib/x86_64-linux-gnu")):
        pytest.skip("a HIP runtime is installed here")
    assert "the device runtime failed" in run()[-1]
