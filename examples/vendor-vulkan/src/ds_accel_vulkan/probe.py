"""Is a Vulkan device here? Without torch, and never an exception: "no" is an answer with a reason."""

from __future__ import annotations

import ctypes.util
import importlib.metadata
import os
from collections.abc import Mapping
from pathlib import Path

from ds_core.hooks import Availability

__all__ = ["BACKEND", "TESTED", "missing", "probe"]

BACKEND = "torchvulkan"
TESTED = "0.2.1"
DRIVERS = ("etc/vulkan/icd.d", "usr/share/vulkan/icd.d", "usr/local/share/vulkan/icd.d")
NAMED = ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")  # the Vulkan loader's own, newer name first


def probe(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> Availability:
    """One device: the backend uses the first that the loader lists."""
    why = missing(os.environ if environ is None else environ, root)
    return Availability(not why, why, device_count=0 if why else 1)


def missing(environ: Mapping[str, str], root: Path) -> str:
    """What the device needs and this machine lacks, with the line that brings it; "" when nothing is."""
    try:
        installed = importlib.metadata.version(BACKEND)
    except importlib.metadata.PackageNotFoundError:
        return f"{BACKEND} is not installed; run: pip install {BACKEND}=={TESTED}"
    if installed != TESTED:
        return f"{BACKEND} {installed} is installed, tested is {TESTED}; run: pip install {BACKEND}=={TESTED}"
    if ctypes.util.find_library("vulkan") is None:
        return "the Vulkan loader is not installed (libvulkan.so.1); on Debian: apt-get install libvulkan1"
    named = next((environ[name] for name in NAMED if environ.get(name)), "")
    if named:
        absent = [path for path in named.split(os.pathsep) if not Path(path).exists()]
        return f"VK_ICD_FILENAMES names drivers that do not exist: {', '.join(absent)}" if absent else ""
    if not any(list((root / folder).glob("*.json")) for folder in DRIVERS):
        return "no Vulkan driver is installed; a software one on Debian: apt-get install mesa-vulkan-drivers"
    return ""
