"""The kernels of this wheel: what its build made, what it left out and why, and the library that fits torch.

Note [One libsycl]
    The host half of the kernels takes the address of torch's ``sycl::queue``, so both must use the very same libsycl.
    Its major version is part of its file name, and of the name of each library in the wheel.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ds_accel_xpu.signs import sycl_of_torch
from ds_core.errors import PluginError
from ds_core.ops.native import KernelLibrary, load

__all__ = ["Built", "built", "cpu_queue_path", "folder", "library_for", "spirv_files", "why_no_kernels"]


@dataclass(frozen=True, slots=True)
class Built:
    """What the build of this wheel recorded.

    Attributes:
        libraries: file name of the host half by major version of libsycl.
        spirv: file names of the modules.
        spirv_tools: the compiler that made them.
        sycl: release of libsycl that each host half was built against.
        left_out: ``spirv`` or ``sycl``, to the reason why it was not built.
    """

    libraries: Mapping[str, str]
    spirv: Sequence[str]
    spirv_tools: str
    sycl: Mapping[str, str]
    left_out: Mapping[str, str]


def folder() -> Path:
    """Where the modules and libraries of this wheel lie."""
    return Path(__file__).resolve().parent / "lib"


@functools.cache
def built() -> Built:
    """What this wheel holds.

    Raises:
        PluginError: the record is missing, because the package was not installed from a wheel.
    """
    path = folder() / "built.json"
    if not path.is_file():
        raise PluginError(f"{path} does not exist: install ds-accel-xpu from a wheel, which brings it")
    return Built(**json.loads(path.read_text()))


def spirv_files() -> list[Path]:
    """The modules of SPIR-V, as they are embedded in the host half."""
    return [folder() / name for name in built().spirv]


def why_no_kernels(sycl: str | None = None) -> str:
    """Why calls on the device run the PyTorch reference, and what to do about it; empty if kernels run.

    Args:
        sycl: major version of the libsycl that torch uses; None looks it up, and takes any where torch has none.
    """
    record = built()
    if not record.libraries:
        missing = record.left_out.get("spirv") or record.left_out.get("sycl", "unknown reason")
        return f"this build of ds-accel-xpu has no kernels: {missing}"
    sycl = sycl_of_torch() if sycl is None else sycl
    if sycl is None or sycl in record.libraries:
        return ""
    return (
        f"torch uses libsycl {sycl}, and ds-accel-xpu has kernels for {', '.join(record.libraries)}. Install a "
        f"ds-accel-xpu that was built against libsycl {sycl}"
    )


def library_for(sycl: str) -> KernelLibrary:
    """The kernels behind one libsycl, which the process has loaded already or finds by its name.

    Raises:
        PluginError: there is none for it, or libsycl cannot be loaded.
    """
    name = built().libraries.get(sycl)
    if name is None:
        raise PluginError(why_no_kernels(sycl))
    try:
        return load(folder() / name)
    except PluginError as error:
        if f"libsycl.so.{sycl}" not in str(error):
            raise
        raise PluginError(
            f"the kernels of ds-accel-xpu need libsycl.so.{sycl} ({built().sycl[sycl]}), which was not found. Builds "
            "of torch for XPU bring it (pip install torch --index-url https://download.pytorch.org/whl/xpu); it comes "
            "with the wheel intel-sycl-rt, too"
        ) from error


def cpu_queue_path(sycl: str) -> Path:
    """The library that makes a queue on a CPU OpenCL device, where the wheel was built with it, for tests."""
    return folder() / f"libdsk_xpu_cpu_queue{sycl}.so"
