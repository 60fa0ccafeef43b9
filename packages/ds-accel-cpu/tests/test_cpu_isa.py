from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import pytest

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import choose_level, library, library_path, usable_levels
from ds_core.errors import AcceleratorError
from ds_core.ops import native


@dataclasses.dataclass(frozen=True)
class FakeLevel:
    name: str
    usable: bool
    reason: str = ""


MACHINE = (FakeLevel("x86_64_v4", False, "lacks avx512f"), FakeLevel("x86_64_v3", True), FakeLevel("x86_64_v2", True))


def test_the_best_usable_level_is_taken() -> None:
    assert choose_level(MACHINE, {}) == "x86_64_v3"
    assert choose_level(MACHINE, {"DS_CPU_ISA": ""}) == "x86_64_v3"


def test_the_environment_decides() -> None:
    assert choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v2"}) == "x86_64_v2"


def test_a_level_that_cannot_run_is_refused_with_what_is_missing_and_what_works() -> None:
    with pytest.raises(AcceleratorError) as caught:
        choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v4"})
    assert str(caught.value) == (
        "DS_CPU_ISA=x86_64_v4 cannot run here: the machine lacks avx512f. Supported here: x86_64_v3, x86_64_v2."
    )


def test_an_unknown_level_names_the_nearest_and_what_works() -> None:
    with pytest.raises(
        AcceleratorError, match=r"x86_64_v33 is not a level .* Did you mean 'x86_64_v3'.*: x86_64_v3, x86"
    ):
        choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v33"})


def test_a_machine_below_every_level_is_told_what_to_do() -> None:
    with pytest.raises(
        AcceleratorError, match=r"the machine lacks ssse3\. Uninstall ds-accel-cpu, or set DS_PLUGINS_DIS"
    ):
        choose_level([FakeLevel("x86_64_v2", False, "lacks ssse3")], {})


def test_every_level_has_its_library_and_each_says_what_it_is() -> None:
    for level in _binding.levels():
        assert library_path(level.name).is_file()
    for name in usable_levels():
        loaded = native.load(library_path(name))
        assert loaded.target == name
        assert loaded.abi == native.ABI
        assert all(kernel.deterministic for kernel in loaded.kernels.values())


def test_this_process_runs_what_the_environment_and_the_machine_say() -> None:
    assert library().target == choose_level(_binding.levels(), os.environ)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="reads /proc/cpuinfo of x86-64")
def test_the_probe_agrees_with_the_kernel() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a special file
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    named = {"lahf": "lahf_lm", "lzcnt": "abm", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2"}
    for feature in _binding.features():
        assert feature == "osxsave" or named.get(feature, feature) in flags
    assert ("x86_64_v3" in usable_levels()) == ({"avx2", "fma", "bmi2", "f16c", "movbe", "abm"} <= flags)
    assert ("x86_64_v4" in usable_levels()) == (
        {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx2", "fma"} <= flags
    )


def run(code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environ}, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("level", usable_levels())
def test_a_process_uses_the_level_it_was_told(level: str) -> None:
    code = (
        "import torch, ds_core.ops as ops\n"
        "from ds_accel_cpu.serving import OPS\n"
        "assert ops.sum_of_squares(torch.ones(10)).item() == 10.0\n"
        "print(OPS.library.target)"
    )
    done = run(code, DS_CPU_ISA=level)
    assert done.stdout.strip() == level, done.stderr


def test_a_bad_level_reaches_the_user_at_the_first_op() -> None:
    done = run("import torch, ds_core.ops as ops; ops.sum_of_squares(torch.ones(1))", DS_CPU_ISA="avx9000")
    assert done.returncode != 0
    assert (
        f"DS_CPU_ISA=avx9000 is not a level of ds-accel-cpu. Supported here: {', '.join(usable_levels())}."
        in done.stderr
    )
