"""What a machine shows of Intel GPUs and of a torch that can use them, without importing torch or starting a driver."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["NODES", "Signs", "driver_version", "read_signs", "sycl_of_torch", "why_unusable"]

NODES = "/dev/dri/renderD*"
"""Nodes of GPUs of every vendor; whose they are says /sys/class/drm."""

_INTEL = "0x8086"
_LOADERS = ("libze_loader.so.1", "ze_loader.dll")
_SYCL_NAME = re.compile(rb"libsycl\.so\.(\d+)|\bsycl(\d+)\.dll")


@dataclass(frozen=True, slots=True)
class Signs:
    """What there is.

    Attributes:
        torch_version: empty without torch.
        torch_xpu: torch has its XPU half.
        nodes: names of Intel's render nodes, for example ``("renderD128",)``.
        closed_nodes: those that this user may not open.
        kernel_driver: module of the first node, for example ``xe 1.1``; empty without a node.
        loader: the Level Zero loader can be loaded.
        linux: the machine says its devices in /dev and /sys.
    """

    torch_version: str = ""
    torch_xpu: bool = False
    nodes: Sequence[str] = ()
    closed_nodes: Sequence[str] = ()
    kernel_driver: str = ""
    loader: bool = False
    linux: bool = True


def why_unusable(signs: Signs) -> str:
    """What is missing first, and what to do about it; empty when nothing is."""
    if not signs.torch_version:
        return "torch is not installed. Run: pip install torch --index-url https://download.pytorch.org/whl/xpu"
    if not signs.torch_xpu:
        return (
            f"torch {signs.torch_version} was built without XPU. "
            "Run: pip install torch --index-url https://download.pytorch.org/whl/xpu"
        )
    if signs.linux and not signs.nodes:
        return (
            f"no Intel GPU: none of {NODES} is Intel's. If the machine has one, its kernel driver (i915 or xe) is not "
            "loaded; in a container, pass the node: --device /dev/dri"
        )
    if signs.linux and len(signs.closed_nodes) == len(signs.nodes):
        return (
            f"no permission to open /dev/dri/{signs.closed_nodes[0]}. Add the user to the group that owns it, usually "
            "render: sudo usermod -aG render $USER, and log in again"
        )
    if not signs.loader:
        return (
            "no Level Zero loader (libze_loader.so.1). Install Intel's GPU driver packages, on Debian and Ubuntu: "
            "apt-get install libze1 libze-intel-gpu1 intel-opencl-icd"
        )
    return ""


def read_signs(root: Path = Path("/")) -> Signs:
    """The signs of this machine; `root` is where its dev and sys folders are."""
    from ds_core.accelerator.torch_build import torch_build

    linux = sys.platform == "linux"
    nodes = [node for node in sorted((root / "sys/class/drm").glob("renderD*")) if _text(node, "vendor") == _INTEL]
    names = [node.name for node in nodes]
    closed = [name for name in names if not os.access(root / "dev/dri" / name, os.R_OK | os.W_OK)]
    return Signs(
        torch_version=torch_build().version,
        torch_xpu=_torch_library() is not None,
        nodes=names,
        closed_nodes=closed,
        kernel_driver=driver_version(nodes[0]) if nodes else "",
        loader=_has_loader(),
        linux=linux,
    )


def driver_version(node: Path) -> str:
    """Name of the kernel module behind a node of /sys/class/drm, and its version where the module has one."""
    module = node / "device" / "driver" / "module"
    if not module.exists():
        return ""
    version = module / "version"
    name = module.resolve().name
    return f"{name} {version.read_text().strip()}" if version.is_file() else f"{name} of the Linux kernel"


def sycl_of_torch() -> str | None:
    """Major version of the libsycl that the installed torch uses, for example ``"8"``; None without an XPU build."""
    library = _torch_library()
    if library is None:
        return None
    found = _SYCL_NAME.search(library.read_bytes())
    return None if found is None else (found[1] or found[2]).decode()


def _torch_library() -> Path | None:
    # The small one of torch's XPU libraries: it is there in XPU builds only, and names the libsycl it needs.
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent / "lib"
    return next((folder / name for name in ("libc10_xpu.so", "c10_xpu.dll") if (folder / name).is_file()), None)


def _text(node: Path, name: str) -> str:
    try:
        return (node / "device" / name).read_text().strip()
    except OSError:
        return ""


def _has_loader() -> bool:
    for name in _LOADERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
