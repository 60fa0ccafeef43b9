"""The kernel libraries of this wheel: where they are, what they were built for, and what was left out and why."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_core.errors import PluginError
from ds_core.ops.native import KernelLibrary, load

__all__ = ["Built", "CudaBuild", "KernelResources", "built", "cuda_path", "emulated", "emulated_path", "resources"]

_FOLDER = Path(__file__).resolve().parent / "lib"


@dataclass(frozen=True, slots=True)
class CudaBuild:
    """One library for NVIDIA GPUs.

    Attributes:
        path: of the library.
        toolkit: version of CUDA, for example ``13.0.88``.
        sass: architectures with machine code, for example ``("sm_75", "sm_90")``.
        ptx: architecture of the portable code, which the driver compiles for other devices, ``compute_75``.
        compiler: that read the sources, ``nvcc`` or ``clang``.
    """

    path: Path
    toolkit: str
    sass: tuple[str, ...]
    ptx: str
    compiler: str = "nvcc"


@dataclass(frozen=True, slots=True)
class Built:
    """What the build of this wheel recorded.

    Attributes:
        rows: names in the op table of its libraries.
        cuda: libraries for NVIDIA GPUs, by major version of CUDA; none if no compiler was found.
        emulated: libraries for the CPU: ``plain``; where the build was asked for it ``sanitized``, and ``faults_32``,
            ``faults_64`` and ``faults_asan`` for the tests of the emulation.
        left_out: kind of library (``cuda``, ``sanitized``) to the reason why there is none.
    """

    rows: tuple[str, ...]
    cuda: Mapping[int, CudaBuild]
    emulated: Mapping[str, Path]
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class KernelResources:
    """What the CUDA compiler says that one kernel takes on one architecture; bytes are a thread's, or a block's."""

    kernel: str
    file: str
    arch: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int


@functools.cache
def built() -> Built:
    """What this wheel holds.

    Raises:
        PluginError: the record is missing, because the package was not installed from a wheel.
    """
    record = _read("built.json")
    return Built(
        rows=tuple(record["rows"]),
        cuda={
            int(major): CudaBuild(
                path=_FOLDER / one["file"],
                toolkit=one["toolkit"],
                sass=tuple(one["sass"]),
                ptx=one["ptx"],
                compiler=one["compiler"],
            )
            for major, one in sorted(record["cuda"].items())
        },
        emulated={kind: _FOLDER / name for kind, name in record["emulated"].items()},
        left_out=dict(record["left_out"]),
    )


def cuda_path(major: int) -> Path:
    """The library for a major version of CUDA.

    Raises:
        PluginError: there is none; says which there are, or why there are none.
    """
    record = built()
    if major in record.cuda:
        return record.cuda[major].path
    others = ", ".join(f"CUDA {other}" for other in record.cuda)
    raise PluginError(
        f"ds-accel-cuda holds no kernels for CUDA {major}: "
        + (f"it was built for {others}" if others else record.left_out.get("cuda", "none were built"))
    )


def emulated_path(sanitized: bool = False) -> Path:
    """The kernels as compiled for the CPU, a fiber for each CUDA thread; `sanitized`: with AddressSanitizer.

    Raises:
        PluginError: it was not built; says why.
    """
    record, kind = built(), "sanitized" if sanitized else "plain"
    if kind not in record.emulated:
        raise PluginError(f"ds-accel-cuda holds no {kind} emulated library: {record.left_out.get(kind, 'not built')}")
    return record.emulated[kind]


def emulated(sanitized: bool = False) -> KernelLibrary:
    """The kernels as compiled for the CPU: for tensors in host memory, to check the kernels on any machine."""
    return load(emulated_path(sanitized))


@functools.cache
def resources(major: int) -> tuple[KernelResources, ...]:
    """What the kernels of the library for a major version of CUDA take, one row a kernel and architecture."""
    cuda_path(major)
    return tuple(KernelResources(**row) for row in _read(f"resources_cuda{major}.json")["kernels"])


def _read(name: str) -> dict[str, Any]:
    path = _FOLDER / name
    if not path.is_file():
        raise PluginError(f"{path} does not exist: install ds-accel-cuda from a wheel, which brings it")
    record: dict[str, Any] = json.loads(path.read_text())
    return record
