"""What this machine has for NVIDIA GPUs: the driver, and what torch was built for. Starts nothing on a device."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

from ds_core.accelerator.torch_build import TorchBuild

__all__ = ["Driver", "find_driver", "refusal"]

_MODULE_VERSION = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        error: why its library cannot be loaded; empty when it can.
        cuda: the newest CUDA it runs, (major, minor); (0, 0) when unknown.
        version: of the kernel module, for example ``"580.65.06"``; empty when unknown.
    """

    error: str = ""
    cuda: tuple[int, int] = (0, 0)
    version: str = ""

    def __str__(self) -> str:
        if self.error:
            return "none"
        runs = f"runs CUDA up to {self.cuda[0]}.{self.cuda[1]}" if self.cuda[0] else "says no CUDA version"
        return f"{self.version or 'version unknown'}, {runs}"


def find_driver() -> Driver:
    """The driver of this machine."""
    name = "nvcuda.dll" if os.name == "nt" else "libcuda.so.1"
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        return Driver(error=f"{name} cannot be loaded ({error})")
    version = ctypes.c_int(0)
    if library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        version.value = 0
    return Driver("", (version.value // 1000, version.value % 1000 // 10), _module_version())


def refusal(build: TorchBuild, driver: Driver, device_count: int | None = None) -> str:
    """Why no NVIDIA GPU can be used here, with the remedy; empty when nothing speaks against it.

    Args:
        build: of the installed torch.
        driver: of this machine.
        device_count: how many devices torch sees; None before torch was asked.
    """
    if not build.version:
        return "torch is not installed; pip install torch"
    if build.hip is not None:
        return f"torch {build.version} is built for ROCm; ds-accel-rocm serves it"
    if build.cuda is None:
        return f"torch {build.version} is built without CUDA; install a CUDA build (pytorch.org/get-started says how)"
    if driver.error:
        return f"no NVIDIA driver: {driver.error}; install the driver, or give the container access to the GPUs"
    if device_count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        limit = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible!r}"
        return f"torch {build.version} sees no GPU{limit}; nvidia-smi shows what the driver ({driver}) sees"
    return ""


def _module_version() -> str:
    try:
        words = _MODULE_VERSION.read_text().split()
    except OSError:
        return ""
    return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), "")
