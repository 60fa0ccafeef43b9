"""Division and square root of the kernels, compiled for the host: right where the device's own are three units off."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHECK = Path(__file__).parent.parent / "csrc" / "checks" / "exact.cpp"
CXX = shutil.which("g++") or shutil.which("c++")

pytestmark = pytest.mark.skipif(CXX is None, reason="there is no C++ compiler")


def run(tmp_path: Path, source: Path, count: int) -> subprocess.CompletedProcess[str]:
    program = tmp_path / "exact"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([str(CXX), *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program), str(count)], capture_output=True, text=True)


def test_quotients_and_roots_are_correctly_rounded(tmp_path: Path) -> None:
    done = run(tmp_path, CHECK, 1_000_000)
    assert done.returncode == 0, done.stdout
    assert done.stdout == "1000000 quotients and roots are as the host's\n"


def test_the_check_sees_a_guess_that_is_taken_as_it_is(tmp_path: Path) -> None:
    spoiled = tmp_path / "checks" / "exact.cpp"
    (tmp_path / "kernels").mkdir()
    spoiled.parent.mkdir()
    spoiled.write_text(CHECK.read_text())
    header = (CHECK.parent.parent / "kernels" / "exact.h").read_text()
    line = "  q = q + fma(-q, d, m) / d;\n"
    assert line in header
    (tmp_path / "kernels" / "exact.h").write_text(header.replace(line, ""))
    done = run(tmp_path, spoiled, 1_000)
    assert done.returncode == 1 and done.stdout.startswith("divide(")
