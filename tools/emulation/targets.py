"""Machines that can be emulated: what builds for them, what runs them, and the levels nothing emulates."""

from __future__ import annotations

import functools
import importlib.metadata
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ELSEWHERE", "MACHINES", "Architecture", "Built", "Machine", "Missing", "build", "command", "probe"]

PACKAGE = Path(__file__).resolve().parent.parent.parent / "packages" / "ds-accel-cpu"


class Missing(Exception):
    """A machine cannot be emulated here; the text says what is not installed, or what went wrong."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """How to compile for a family of processors and run the result.

    Args:
        name: as CMake says it.
        compiler: of C++.
        emulator: a program, or empty where the processor is this one.
        packages: where these come from.
        sysroot: holds the dynamic linker; empty for this machine's.
    """

    name: str
    compiler: str
    emulator: str
    packages: str
    sysroot: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """A processor to emulate.

    Args:
        architecture: its family.
        level: what is run on it.
        processor: for ``-cpu`` of qemu.
        lacks: levels whose reason for not being usable must say this, by level: it proves the probe.
        vector_bits: length of scalable vectors, 0 without.
    """

    architecture: Architecture
    level: str
    processor: str
    lacks: Mapping[str, str] = field(default_factory=dict)
    vector_bits: int = 0


@dataclass(frozen=True, slots=True)
class Built:
    """What a build made, and with what."""

    folder: Path
    compiler: str

    def library(self, level: str) -> Path:
        """Of kernels."""
        return self.folder / f"libdsk_cpu_{level}.so"


ARM = Architecture(
    "aarch64",
    "aarch64-linux-gnu-g++",
    "qemu-aarch64",
    "g++-aarch64-linux-gnu qemu-user",
    "/usr/aarch64-linux-gnu",
)
X86 = Architecture("x86_64", "x86_64-linux-gnu-g++", "qemu-x86_64", "g++-x86-64-linux-gnu qemu-user")


def _sve(bits: int) -> Machine:
    return Machine(ARM, "aarch64_sve", f"max,sve-default-vector-length={bits // 8}", vector_bits=bits)


MACHINES = (
    Machine(ARM, "aarch64_neon", "cortex-a53", {"aarch64_sve": "sve"}),
    *(_sve(bits) for bits in (128, 256, 512, 2048)),
    Machine(X86, "x86_64_v2", "Nehalem", {"x86_64_v3": "avx2", "x86_64_v4": "avx512f", "x86_64_amx": "amx_tile"}),
    Machine(X86, "x86_64_v3", "max", {"x86_64_v4": "avx512f"}),
)

_NONE = "no emulator is packaged (qemu has no AVX-512 and no AMX)"
ELSEWHERE = {
    "x86_64_v4": _NONE,
    "x86_64_v4_bf16": _NONE,
    "x86_64_amx": f"{_NONE}; kernels that use tiles run on every machine over a model of the tile instructions in C++",
}
"""Levels that nothing here emulates, and why."""


def build(machine: Machine, folder: Path) -> Built:
    """Compiles the kernels of the machine's level, and the program that calls them.

    Raises:
        Missing: a compiler or an emulator is not installed, or the build failed.
    """
    architecture = machine.architecture
    programs = ("cmake", "ninja", architecture.compiler, architecture.emulator)
    absent = [program for program in programs if program and shutil.which(program) is None]
    if absent:
        raise Missing(f"{', '.join(absent)} not found; Debian has {architecture.packages}, PyPI cmake and ninja")
    return _build(architecture, folder / architecture.name)


@functools.cache
def _build(architecture: Architecture, folder: Path) -> Built:
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": architecture.name,
        "CMAKE_CXX_COMPILER": architecture.compiler,
        "DSK_FOR_EMULATION": "ON",
        "DSK_LEVELS": ";".join({machine.level: "" for machine in MACHINES if machine.architecture == architecture}),
        "Python_EXECUTABLE": sys.executable,
        "SKBUILD_PROJECT_VERSION": importlib.metadata.version("ds-accel-cpu"),
    }
    defines = [f"-D{name}={value}" for name, value in settings.items()]
    _run(["cmake", "-G", "Ninja", "-S", str(PACKAGE), "-B", str(folder), *defines])
    _run(["cmake", "--build", str(folder)])
    version = _run([architecture.compiler, "--version"]).splitlines()[0]
    return Built(folder, version)


def command(machine: Machine, built: Built) -> list[str]:
    """The program that calls kernels, under the emulator."""
    architecture = machine.architecture
    program = str(built.folder / "dsk_runner")
    if not architecture.emulator:
        return [program]
    root = ["-L", architecture.sysroot] if architecture.sysroot else []
    return [architecture.emulator, "-cpu", machine.processor, *root, program]


def probe(machine: Machine, built: Built) -> str:
    """What our probe says on that machine, after a look whether it is right.

    Raises:
        Missing: the machine is not what was asked for, or the emulator does not know it.
    """
    said = _run(command(machine, built))
    levels = dict(re.findall(r"^level (\w+): (.*)$", said, re.MULTILINE))
    if levels.get(machine.level) != "usable":
        raise Missing(f"the emulated processor {levels.get(machine.level, 'has no such level')}")
    for level, feature in machine.lacks.items():
        if not re.search(rf"\blacks .*\b{feature}\b", levels[level]):
            raise Missing(f"the probe should miss {feature} for {level}, and says: {levels[level]}")
    bits = int(re.findall(r"^scalable vector bits: (\d+)$", said, re.MULTILINE)[0])
    if machine.vector_bits and bits != machine.vector_bits:
        raise Missing(f"the emulator gives vectors of {bits} bits")
    return _run([machine.architecture.emulator, "--version"]).splitlines()[0]


def _run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise Missing(f"{Path(words[0]).name} failed ({done.returncode}): {' '.join(last)}")
    return done.stdout
