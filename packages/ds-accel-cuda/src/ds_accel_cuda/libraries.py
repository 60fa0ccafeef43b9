"""The kernel libraries of this wheel: where they are, what they were built for, and what was left out and why."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ds_core.errors import PluginError
from ds_core.ops.native import KernelLibrary, load

__all__ = ["Built", "built", "emulated", "emulated_path", "library_path", "resources"]

_FOLDER = Path(__file__).resolve().parent / "lib"


@dataclass(frozen=True, slots=True)
class Built:
    """What the build of this wheel recorded.

    Attributes:
        libraries: file names in the wheel's ``lib`` folder, by kind: ``cuda`` and ``emulated``, where built also
            ``emulated_asan`` (AddressSanitizer).
        toolkit: version of the CUDA compiler, for example ``13.0.88``; empty without one.
        sass: architectures with machine code, for example ``("sm_75", "sm_90")``.
        ptx: the architecture of the portable code, for example ``compute_90``; empty without.
        left_out: kind of library that was not built, to the reason.
    """

    libraries: dict[str, str]
    toolkit: str
    sass: tuple[str, ...]
    ptx: str
    left_out: dict[str, str]


@functools.cache
def built() -> Built:
    """What this wheel holds.

    Raises:
        PluginError: the record is missing, because the package was not installed from a wheel.
    """
    record: dict[str, Any] = _read("built.json")
    return Built(
        libraries=dict(record["libraries"]),
        toolkit=record["toolkit"],
        sass=tuple(record["sass"]),
        ptx=record["ptx"],
        left_out=dict(record["left_out"]),
    )


def library_path(kind: str) -> Path:
    """The file of one library.

    Raises:
        PluginError: it was not built; says why.
    """
    record = built()
    if kind in record.libraries:
        return _FOLDER / record.libraries[kind]
    why = record.left_out.get(kind, f"this wheel knows {', '.join([*record.libraries, *record.left_out])}")
    raise PluginError(f"ds-accel-cuda holds no library {kind!r}: {why}")


def emulated_path() -> Path:
    """The kernels as compiled for the CPU, one fiber a CUDA thread."""
    return library_path("emulated")


def emulated() -> KernelLibrary:
    """The kernels as compiled for the CPU: for tensors in host memory, to check the kernels on any machine."""
    return load(emulated_path())


@functools.cache
def resources() -> tuple[dict[str, Any], ...]:
    """What the CUDA compiler said of every kernel for every architecture; empty without a CUDA library.

    Each has ``kernel`` (readable name), ``file``, ``arch``, ``registers``, ``shared_bytes`` (static), ``stack_bytes``,
    ``spill_store_bytes`` and ``spill_load_bytes``.
    """
    return tuple(_read("resources.json")["kernels"]) if "cuda" in built().libraries else ()


def _read(name: str) -> dict[str, Any]:
    path = _FOLDER / name
    if not path.is_file():
        raise PluginError(f"{path} does not exist: install ds-accel-cuda from a wheel, which brings it")
    record: dict[str, Any] = json.loads(path.read_text())
    return record
