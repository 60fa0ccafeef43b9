"""What the build makes of a compiler that is too old for a level: CMake is configured, and nothing compiled."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent
CMAKE, CXX = shutil.which("cmake"), shutil.which("g++")

pytestmark = [
    pytest.mark.skipif(CMAKE is None or shutil.which("ninja") is None, reason="cmake and ninja are not installed"),
    pytest.mark.skipif(CXX is None, reason="g++ is not installed"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="names levels of x86-64"),
]


@pytest.fixture
def old_compiler(tmp_path: Path) -> Path:
    """g++ as it was before it knew AVX512-FP16."""
    path = tmp_path / "old-g++"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *-mavx512fp16*) echo "unrecognized option -mavx512fp16" >&2; exit 1;; esac\n'
        f'exec {CXX} "$@"\n'
    )
    path.chmod(0o755)
    return path


def configure(folder: Path, compiler: Path | str, *settings: str) -> subprocess.CompletedProcess[str]:
    command = [CMAKE or "cmake", "-G", "Ninja", "-S", PACKAGE, "-B", folder, f"-DCMAKE_CXX_COMPILER={compiler}"]
    command += ["-DDSK_FOR_EMULATION=ON", f"-DPython_EXECUTABLE={sys.executable}", *settings]
    return subprocess.run(command, capture_output=True, text=True)


def words(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split())


def test_a_level_the_compiler_cannot_build_is_left_out_and_the_others_are_built(
    tmp_path: Path, old_compiler: Path
) -> None:
    done = configure(tmp_path / "build", old_compiler)
    assert done.returncode == 0, done.stderr
    assert "Level x86_64_amx is left out: GNU " in words(done) and "does not know -march=x86-64-v4" in words(done)
    rules = (tmp_path / "build" / "build.ninja").read_text()
    assert "libdsk_cpu_x86_64_v4_bf16.so" in rules and "libdsk_cpu_x86_64_amx.so" not in rules


def test_a_level_that_is_asked_for_and_cannot_be_built_is_an_error(tmp_path: Path, old_compiler: Path) -> None:
    done = configure(tmp_path / "build", old_compiler, "-DDSK_LEVELS=x86_64_v3;x86_64_amx")
    assert done.returncode != 0
    assert "DSK_LEVELS asks for level x86_64_amx, but GNU " in words(done)


def test_a_level_that_does_not_exist_is_an_error_that_names_those_that_do(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", CXX or "g++", "-DDSK_LEVELS=x86_64_v5")
    assert done.returncode != 0
    assert "DSK_LEVELS asks for level x86_64_v5; known for x86_64: x86_64_amx;" in words(done)
