from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import choose_level, library, library_path, load_level, usable_levels
from ds_core.errors import AcceleratorError
from ds_core.ops import native

PACKAGE = Path(__file__).parent.parent
LINUX_NAMES = {"lahf": "lahf_lm", "lzcnt": "abm", "sse3": "pni", "sse4.1": "sse4_1", "sse4.2": "sse4_2"}
"""Features that /proc/cpuinfo calls otherwise."""

ALSO_CALLED = {
    "AVX512BF16": "avx512_bf16",
    "AVX512FP16": "avx512_fp16",
    "AVX512VNNI": "avx512_vnni",
    "BMI": "bmi1",
    "GCC_HAVE_SYNC_COMPARE_AND_SWAP_16": "cx16",
    "LAHF_SAHF": "lahf",
    "SSE4_1": "sse4.1",
    "SSE4_2": "sse4.2",
}
"""Macros of the compiler whose names are not those of the probe in capitals."""

NO_FEATURE = {"XSAVE", "CRC32"}
"""Macros for what a named feature brings with it: AVX needs xsave (the probe asks for osxsave), crc32 is in SSE4.2."""


def table() -> list[tuple[str, str]]:
    """(feature, the first level that needs it) of the probe."""
    text = (PACKAGE / "csrc/binding/probe_x86_64.h").read_text()
    return re.findall(r'\{"([\w.]+)", k(\w+), k', text)


def needs(level: str) -> set[str]:
    """Features the probe asks for, for a level of x86-64."""
    order = ["v2", "v3", "v4", "v4_bf16", "amx"]
    least = order.index(level.removeprefix("x86_64_"))
    names = {"V2": 0, "V3": 1, "V4": 2, "V4Bf16": 3, "Amx": 4}
    return {feature for feature, since in table() if names[since] <= least}


def macros(*flags: str) -> set[str]:
    """What the compiler defines with these flags."""
    compiler = shutil.which("g++") or "g++"
    command = [compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"^#define __(\w+?)(?:__)? 1$", text, re.MULTILINE))


@dataclasses.dataclass(frozen=True)
class FakeLevel:
    name: str
    usable: bool
    reason: str = ""


def granted(level: str) -> str:
    return ""


MACHINE = (FakeLevel("x86_64_v4", False, "lacks avx512f"), FakeLevel("x86_64_v3", True), FakeLevel("x86_64_v2", True))


def test_the_best_usable_level_is_taken() -> None:
    assert choose_level(MACHINE, {}, granted) == "x86_64_v3"
    assert choose_level(MACHINE, {"DS_CPU_ISA": ""}, granted) == "x86_64_v3"


def test_the_environment_decides() -> None:
    assert choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v2"}, granted) == "x86_64_v2"


def test_a_level_that_cannot_run_is_refused_with_what_is_missing_and_what_works() -> None:
    with pytest.raises(AcceleratorError) as caught:
        choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v4"}, granted)
    assert str(caught.value) == (
        "DS_CPU_ISA=x86_64_v4 cannot run here: the machine lacks avx512f. Supported here: x86_64_v3, x86_64_v2."
    )


def test_an_unknown_level_names_the_nearest_and_what_works() -> None:
    with pytest.raises(
        AcceleratorError, match=r"x86_64_v33 is not a level .* Did you mean 'x86_64_v3'.*: x86_64_v3, x86"
    ):
        choose_level(MACHINE, {"DS_CPU_ISA": "x86_64_v33"}, granted)


def test_a_machine_below_every_level_is_told_what_to_do() -> None:
    with pytest.raises(
        AcceleratorError, match=r"the machine lacks ssse3\. Uninstall ds-accel-cpu, or set DS_PLUGINS_DIS"
    ):
        choose_level([FakeLevel("x86_64_v2", False, "lacks ssse3")], {}, granted)


TILES = (FakeLevel("x86_64_amx", True), *MACHINE)
REFUSAL = "was refused the AMX tile registers (arch_prctl: Operation not permitted)"


def refuse_tiles(level: str) -> str:
    return REFUSAL if level == "x86_64_amx" else ""


def test_a_level_whose_permission_is_refused_gives_way_to_the_next() -> None:
    assert choose_level(TILES, {}, granted) == "x86_64_amx"
    assert choose_level(TILES, {}, refuse_tiles) == "x86_64_v3"


def test_permission_is_asked_for_the_level_in_use_only() -> None:
    asked: list[str] = []
    choose_level(TILES, {"DS_CPU_ISA": "x86_64_v2"}, lambda level: asked.append(level) or "")
    assert asked == ["x86_64_v2"]


def test_a_level_that_is_asked_for_and_refused_says_who_refused() -> None:
    with pytest.raises(AcceleratorError) as caught:
        choose_level(TILES, {"DS_CPU_ISA": "x86_64_amx"}, refuse_tiles)
    assert str(caught.value) == (
        f"DS_CPU_ISA=x86_64_amx cannot run here: the machine {REFUSAL}. Supported here: x86_64_v3, x86_64_v2."
    )


def test_a_level_that_cannot_run_here_is_not_loaded() -> None:
    for level in _binding.levels():
        if not level.usable:
            with pytest.raises(AcceleratorError, match=f"{level.name} .* cannot run here: the machine lacks "):
                load_level(level.name)
    with pytest.raises(AcceleratorError, match=r"avx9000 .* cannot run here: the machine has no such level"):
        load_level("avx9000")


def test_levels_that_were_not_built_are_told_apart_from_those_that_were() -> None:
    left_out = {line.partition(": ")[0] for line in _binding.levels_left_out()}
    assert all(": " in line for line in _binding.levels_left_out())
    assert not left_out & {level.name for level in _binding.levels()}


def test_every_level_has_its_library_and_each_says_what_it_is() -> None:
    for level in _binding.levels():
        assert library_path(level.name).is_file()
    for name in usable_levels():
        loaded = load_level(name)
        assert loaded.target == name
        assert loaded.abi == native.ABI
        assert all(kernel.deterministic for kernel in loaded.kernels.values())


def test_this_process_runs_what_the_environment_and_the_machine_say() -> None:
    assert library().target == choose_level(_binding.levels(), os.environ)


@pytest.mark.skipif(sys.platform != "linux" or os.uname().machine != "x86_64", reason="reads /proc/cpuinfo of x86-64")
def test_the_probe_agrees_with_the_kernel() -> None:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123 - a special file
        flags = set(next(line for line in lines if line.startswith("flags")).split())
    for feature in _binding.features():
        assert feature == "osxsave" or LINUX_NAMES.get(feature, feature) in flags
    for level in _binding.levels():
        needed = {LINUX_NAMES.get(feature, feature) for feature in needs(level.name)} - {"osxsave"}
        assert level.usable == (needed <= flags), level.name


@pytest.mark.skipif(platform.machine() != "x86_64", reason="reads the flags of x86-64")
@pytest.mark.skipif(shutil.which("g++") is None, reason="asks g++ what its flags mean")
@pytest.mark.parametrize("level", [level.name for level in _binding.levels()])
def test_the_probe_asks_for_every_feature_a_level_is_compiled_with(level: str) -> None:
    settings = dict(re.findall(r"set\(DSK_FLAGS_(\w+) ([^)]*)\)", (PACKAGE / "CMakeLists.txt").read_text()))
    flags = settings[level]
    while "${" in flags:
        flags = re.sub(r"\$\{DSK_FLAGS_(\w+)\}", lambda found: settings[found[1]], flags)
    new = macros(*flags.split()) - macros("-march=x86-64") - NO_FEATURE
    brought = {name for name in new if not name.startswith("FP_FAST_")}
    assert {ALSO_CALLED.get(name, name.lower()) for name in brought} == needs(level) - {"osxsave"}


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
