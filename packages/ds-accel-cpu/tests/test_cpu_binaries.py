"""What was built: no level leaks into another or into the probe, nothing of torch is linked, one symbol is exported."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from ds_accel_cpu import _binding
from ds_accel_cpu.isa import library_path

OBJDUMP = shutil.which("objdump")
LEVELS = [level.name for level in _binding.levels()]
BINDING = Path(_binding.__file__)
LIBRARIES = [library_path(level) for level in LEVELS]
MODULES = sorted(BINDING.parent.glob("_*.so"))  # this binding and any other
EVERY = sorted(BINDING.parent.rglob("*.so*"))  # whatever the wheel brings, wherever in it

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files"),
    pytest.mark.skipif(OBJDUMP is None, reason="objdump (binutils) is not installed"),
]
on_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="only x86-64 has levels")


@cache
def objdump(path: Path, *arguments: str) -> str:
    assert OBJDUMP is not None
    return subprocess.run([OBJDUMP, *arguments, str(path)], check=True, capture_output=True, text=True).stdout


@cache
def instructions(path: Path) -> str:
    return objdump(path, "-d", "--no-show-raw-insn")


def mnemonics(path: Path) -> set[str]:
    return set(re.findall(r"^\s*[0-9a-f]+:\s+(\S+)", instructions(path), re.MULTILINE))


def uses(path: Path, register: str) -> bool:
    return f"%{register}" in instructions(path)


AVX512 = re.compile(r"%zmm|%k[0-7]\b|\{%k|%[xy]mm(1[6-9]|2[0-9]|3[01])\b")
DOTS = re.compile(r"vpdp\w+|vdpbf16ps|vcvtn\w*bf16\w*")
TILES = re.compile(r"t(dp|ile|z)\w+|(ld|st)tilecfg|v\w+[ps]h|vcvt\w*ph\w*")
HALF = {"vcvtph2ps", "vcvtps2ph"}  # F16C and AVX-512F have these two; all else on float16 is AVX512-FP16


def foreign(path: Path, pattern: re.Pattern[str]) -> set[str]:
    return {m for m in mnemonics(path) if pattern.fullmatch(m) and m not in HALF}


@on_x86
def test_v2_has_no_wide_registers_and_no_vex_instruction() -> None:
    path = library_path("x86_64_v2")
    assert not uses(path, "ymm") and not uses(path, "zmm")
    assert not [m for m in mnemonics(path) if m.startswith("v") and not m.startswith("ver")]


@on_x86
def test_v3_has_ymm_and_fma_and_nothing_of_avx512() -> None:
    path = library_path("x86_64_v3")
    assert uses(path, "ymm") and not AVX512.search(instructions(path))
    assert any(m.startswith("vfmadd") and m.endswith("ps") for m in mnemonics(path))
    assert {"vcvtph2ps", "vcvtps2ph"} <= mnemonics(path)


@on_x86
@pytest.mark.parametrize("level", ["x86_64_v4", "x86_64_v4_bf16", "x86_64_amx"])
def test_from_v4_on_full_registers_are_used(level: str) -> None:
    assert uses(library_path(level), "zmm")


@on_x86
@pytest.mark.parametrize("level", ["x86_64_v2", "x86_64_v3", "x86_64_v4"])
def test_no_dot_product_instruction_below_the_level_that_brings_them(level: str) -> None:
    assert not foreign(library_path(level), DOTS)


@on_x86
@pytest.mark.parametrize("level", ["x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16"])
def test_no_tile_and_no_float16_arithmetic_below_amx(level: str) -> None:
    assert not foreign(library_path(level), TILES)


@on_x86
@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name.partition(".")[0])
def test_what_runs_before_the_level_is_known_is_baseline(path: Path) -> None:
    assert not uses(path, "ymm") and not uses(path, "zmm") and not uses(path, "tmm")
    found = mnemonics(path)
    assert not {m for m in found if m.startswith("v") and not m.startswith("ver")}
    assert not found & {"pshufb", "popcnt", "pmulld", "ptest", "roundss", "crc32", "tzcnt", "lzcnt", "andn"}


@pytest.mark.parametrize("path", LIBRARIES, ids=LEVELS)
def test_divisions_and_roots_are_exact_ones(path: Path) -> None:
    assert not [m for m in mnemonics(path) if re.match(r"v?(rcp|rsqrt)", m)]


def test_every_binary_of_the_wheel_is_a_module_or_a_level() -> None:
    assert set(EVERY) == {*MODULES, *LIBRARIES}


@pytest.mark.parametrize("path", EVERY, ids=lambda path: path.name.partition(".")[0])
def test_nothing_of_torch_python_or_openmp_is_linked(path: Path) -> None:
    needed = set(re.findall(r"NEEDED\s+(\S+)", objdump(path, "-p")))
    allowed = {
        "libc.so.6",
        "libm.so.6",
        "libgcc_s.so.1",
        "libpthread.so.0",
        "ld-linux-x86-64.so.2",
        "ld-linux-aarch64.so.1",
    }
    if path not in LIBRARIES:
        allowed |= {"libstdc++.so.6"}
    assert needed <= allowed, needed
    undefined = re.findall(r"\*UND\*.*?\s(\S+)$", objdump(path, "-T"), re.MULTILINE)
    assert not [name for name in undefined if re.search(r"c10|N?2at\d|torch|GOMP|omp_", name)]
    assert not re.search(r"RPATH|RUNPATH", objdump(path, "-p"))


@pytest.mark.parametrize("path", LIBRARIES, ids=LEVELS)
def test_a_library_exports_its_descriptor_and_nothing_else(path: Path) -> None:
    exported = [line.split()[-1] for line in objdump(path, "-T").splitlines() if re.search(r" [gwu].* \.\w+", line)]
    assert exported == ["ds_kernel_descriptor"]


@pytest.mark.parametrize("path", [*MODULES, *LIBRARIES], ids=lambda path: path.name.partition(".")[0])
def test_no_symbol_is_unique_across_the_process(path: Path) -> None:
    assert not re.search(r"^[0-9a-f]+ u", objdump(path, "-T"), re.MULTILINE)


@pytest.mark.parametrize("path", [*MODULES, *LIBRARIES], ids=lambda path: path.name.partition(".")[0])
def test_loading_does_not_flush_denormals(path: Path) -> None:
    assert "set_fast_math" not in objdump(path, "-t") + objdump(path, "-T")
    assert "ldmxcsr" not in mnemonics(path)
