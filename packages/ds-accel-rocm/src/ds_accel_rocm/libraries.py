"""The kernel libraries of this wheel: where they are, what they were built for, and what was left out and why."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds_core.errors import PluginError
from ds_core.ops.native import KernelLibrary, load

__all__ = ["Built", "built", "emulated"]

_FOLDER = Path(__file__).resolve().parent / "lib"


@dataclass(frozen=True, slots=True)
class Built:
    """What the build of this wheel recorded.

    Attributes:
        rows: names in the op table of its libraries.
        path: of the library for AMD GPUs; None where no compiler was found.
        toolkit: version of HIP, for example ``"HIP 5.2.21153-0"``.
        archs: architectures it has code for, for example ``("gfx90a", "gfx1030")``.
        left_out: what is missing (``rocm``, ``architectures``) to the reason.
    """

    rows: tuple[str, ...]
    path: Path | None
    toolkit: str
    archs: tuple[str, ...]
    left_out: Mapping[str, str]


@functools.cache
def built() -> Built:
    """What this wheel holds.

    Raises:
        PluginError: the record is missing, because the package was not installed from a wheel.
    """
    path = _FOLDER / "built.json"
    if not path.is_file():
        raise PluginError(f"{path} does not exist: install ds-accel-rocm from a wheel, which brings it")
    record = json.loads(path.read_text())
    file = _FOLDER / record["file"] if record["file"] else None
    return Built(tuple(record["rows"]), file, record["toolkit"], tuple(record["archs"]), dict(record["left_out"]))


def emulated() -> KernelLibrary:
    """The kernels as compiled for the CPU, with waves of 64, for tensors in host memory."""
    return load(_FOLDER / "libdsk_rocm_emulated.so")
