"""What the build makes of a machine without the tools: CMake is configured, and nothing compiled."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parent.parent
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.skipif(
    CMAKE is None or shutil.which("ninja") is None or shutil.which("g++") is None,
    reason="cmake, ninja and g++ are not all installed",
)


def configure(folder: Path, *settings: str) -> dict[str, Any]:
    command = [
        str(CMAKE),
        "-G",
        "Ninja",
        "-S",
        str(PACKAGE),
        "-B",
        str(folder),
        f"-DPython_EXECUTABLE={sys.executable}",
    ]
    done = subprocess.run([*command, *settings], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record: dict[str, Any] = json.loads((folder / "built.json").read_text())
    return record


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def tools(tmp_path: Path) -> list[str]:
    """A compiler and a translator that make something of everything."""
    touch = 'while [ $# -gt 0 ]; do if [ "$1" = -o ]; then : > "$2"; fi; shift; done; echo "clang version 99.0.0"'
    clang, translator = script(tmp_path / "clang", touch), script(tmp_path / "llvm-spirv", touch)
    return [f"-DDSK_CLANG={clang}", f"-DDSK_LLVM_SPIRV={translator}"]


def test_a_compiler_that_makes_no_spirv_leaves_the_kernels_out_with_its_message(tmp_path: Path) -> None:
    broken = script(tmp_path / "clang", 'echo "unknown target spir64" >&2; exit 1')
    record = configure(tmp_path / "build", f"-DDSK_CLANG={broken}", f"-DDSK_LLVM_SPIRV={broken}")
    assert record["spirv"] == [] and record["libraries"] == {}
    assert "cannot compile OpenCL to SPIR-V: unknown target spir64" in record["left_out"]["spirv"]
    assert record["left_out"]["sycl"] == "there is no SPIR-V to hand to a device"


def test_without_libsycl_the_wheel_has_modules_and_says_what_is_missing(tmp_path: Path, tools: list[str]) -> None:
    record = configure(tmp_path / "build", *tools, "-DDSK_PYTHON_PREFIX=/nowhere")
    assert "optim.spv" in record["spirv"] and record["spirv_tools"] == "clang version 99.0.0"
    assert record["libraries"] == {}
    assert "pip install intel-sycl-rt" in record["left_out"]["sycl"]


def test_there_is_a_host_half_for_every_libsycl_that_is_found(tmp_path: Path, tools: list[str]) -> None:
    roots = []
    for version in ("8", "9"):
        root = tmp_path / f"sycl{version}"
        (root / "include" / "sycl").mkdir(parents=True)
        (root / "lib").mkdir()
        (root / "include" / "sycl" / "sycl.hpp").touch()
        (root / "lib" / f"libsycl.so.{version}").touch()
        text = f"#define __LIBSYCL_MAJOR_VERSION {version}\n#define __LIBSYCL_MINOR_VERSION 1\n"
        (root / "include" / "sycl" / "version.hpp").write_text(text)
        roots.append(str(root))
    settings = [f"-DDSK_SYCL_ROOTS={';'.join(roots)}", "-DDSK_PYTHON_PREFIX=/nowhere"]
    record = configure(tmp_path / "build", *tools, *settings)
    assert record["libraries"] == {"8": "libdsk_xpu_sycl8.so", "9": "libdsk_xpu_sycl9.so"}
    assert record["sycl"] == {"8": "libsycl 8.1", "9": "libsycl 9.1"}
    assert record["left_out"] == {}
