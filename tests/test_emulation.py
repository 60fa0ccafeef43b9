"""The tool that runs kernels under an emulator, tried without one: the program and the messages to it."""

from __future__ import annotations

import contextlib
import gc
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("ds_accel_cpu", reason="calls the ops of ds-accel-cpu")

from ds_accel_cpu.isa import library
from ds_core.ops.native import include_dir
from ds_core.testing import op_cases

TOOLS = Path(__file__).resolve().parent.parent / "tools"
PROBE = TOOLS.parent / "packages" / "ds-accel-cpu" / "csrc"
CXX = shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the program is for Linux"),
    pytest.mark.skipif(CXX is None, reason="the program is compiled with g++, which is not installed"),
]

CARELESS = """
#include "ds_kernel.h"

namespace {
int32_t past_the_end(const void* arguments, const ds_exec*) {
  const ds_sum_of_squares_args* a = static_cast<const ds_sum_of_squares_args*>(arguments);
  a->out[1] = 1.0;
  return DS_OK;
}
int32_t refuse(const void*, const ds_exec*) { return DS_UNSUPPORTED_DTYPE; }
int32_t die(const void*, const ds_exec*) { __builtin_trap(); }
const ds_kernel_entry kEntries[] = {{"sum_of_squares", 1, 0, past_the_end, nullptr},
                                    {"adam_", 1, 0, refuse, nullptr},
                                    {"rms_norm_forward", 1, 0, die, nullptr}};
const ds_kernel_library kLibrary = {DS_KERNEL_MAGIC, DS_KERNEL_ABI_MAJOR, DS_KERNEL_ABI_MINOR, sizeof(kLibrary),
                                    sizeof(kEntries[0]), 3, 0, "careless", "", kEntries};
}  // namespace

extern "C" const ds_kernel_library* ds_kernel_descriptor(void) { return &kLibrary; }
"""


@pytest.fixture(scope="module")
def tools() -> Iterator[None]:
    sys.path.insert(0, str(TOOLS))
    yield
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory, tools: None) -> Path:
    program = tmp_path_factory.mktemp("runner") / "runner"
    sources = [PROBE / "emulation" / "runner.cpp", PROBE / "binding" / "probe.cpp"]
    compile_cpp(program, *sources, f"-I{PROBE / 'binding'}", '-DDSK_LEVELS="x86_64_v2"', '-DDSK_LEFT_OUT=""', "-ldl")
    return program


def compile_cpp(to: Path, *arguments: Path | str) -> None:
    command = [CXX or "g++", "-std=c++17", "-O1", f"-I{include_dir()}", "-o", to, *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def emulated(program: Path, kernels: Path) -> Iterator[Any]:
    from emulation.ops import EmulatedOps
    from emulation.runner import Runner

    gc.freeze()  # nothing that is alive now has to be looked at
    with Runner([str(program)], kernels) as opened:
        yield EmulatedOps(opened)
    gc.unfreeze()


@pytest.fixture
def careless(runner: Path, tmp_path: Path) -> Iterator[Any]:
    (tmp_path / "careless.cpp").write_text(CARELESS)
    compile_cpp(tmp_path / "careless.so", tmp_path / "careless.cpp", "-shared", "-fPIC")
    with emulated(runner, tmp_path / "careless.so") as ops:
        yield ops


@pytest.mark.parametrize("name", ["sum_of_squares", "rms_norm_backward", "quantize"])
def test_an_op_over_the_program_gives_what_the_reference_gives(runner: Path, name: str) -> None:
    with emulated(runner, library().path) as ops:
        for case in op_cases.cases(name):
            op_cases.check_kernel(name, case, getattr(ops, name), "cpu")
    assert ops.called == {name}


def test_ops_that_the_wheel_leaves_to_the_reference_are_named_and_not_called(runner: Path, tmp_path: Path) -> None:
    from emulation.cases import run_cases
    from emulation.targets import Architecture, Built, Machine

    level = library().target
    (tmp_path / "dsk_runner").symlink_to(runner)
    (tmp_path / f"libdsk_cpu_{level}.so").symlink_to(library().path)
    this_one = Machine(Architecture("here", "g++", "", "", ""), level, "this one")
    outcome = run_cases(this_one, Built(tmp_path, "g++"), ["quantized_reduce", "sum_of_squares"], "")
    assert outcome.uncovered == ["quantized_reduce"]
    assert outcome.cases == outcome.same == {"sum_of_squares": len(op_cases.cases("sum_of_squares"))}
    assert not outcome.failures


def test_a_write_past_the_end_is_found(careless: Any) -> None:
    from emulation.runner import RunnerError

    with pytest.raises(RunnerError, match=r"sum_of_squares of careless\.so .* wrote before or after buffer 2 of 3"):
        careless.sum_of_squares(torch.ones(3))


def test_a_refusal_has_its_status(careless: Any) -> None:
    from emulation.runner import RunnerError

    hyper = {"lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.0, "step": 1}
    with pytest.raises(RunnerError, match=r"adam_ of careless\.so .* returned status 2"):
        careless.adam_(*(torch.ones(3) for _ in range(4)), **hyper)


def test_the_end_of_the_program_is_told_with_its_signal(careless: Any) -> None:
    from emulation.runner import RunnerError

    with pytest.raises(RunnerError, match=r"rms_norm_forward of careless\.so .*: the program ended with -\d+"):
        careless.rms_norm_forward(torch.ones(3, 2), torch.ones(2), 1e-6)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names a level of x86-64")
def test_alone_the_program_says_what_the_probe_finds(runner: Path) -> None:
    said = subprocess.run([str(runner)], check=True, capture_output=True, text=True).stdout
    assert said.startswith("level x86_64_v2: usable\nfeatures: cx16")
