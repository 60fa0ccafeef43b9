"""What this machine has for AMD GPUs: the driver, and what torch was built for. Starts nothing on a device."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ds_core.accelerator.torch_build import TorchBuild

__all__ = ["Driver", "find_driver", "refusal"]

_VERSION = Path("/sys/module/amdgpu/version")
_NODE = Path("/dev/kfd")


@dataclass(frozen=True, slots=True)
class Driver:
    """The AMD GPU driver.

    Attributes:
        error: why it cannot be used; empty when it can.
        version: of the kernel module; empty where the kernel's own does not say.
    """

    error: str = ""
    version: str = ""

    def __str__(self) -> str:
        return "none" if self.error else f"amdgpu {self.version or 'of the kernel'}"


def find_driver(version: Path = _VERSION, node: Path = _NODE) -> Driver:
    """The driver of this machine."""
    if not node.exists():
        return Driver(f"{node} does not exist; install the amdgpu driver, or start the container with --device={node}")
    if not os.access(node, os.R_OK | os.W_OK):
        return Driver(f"{node} may not be opened by this user; add the user to the groups render and video")
    try:
        return Driver(version=version.read_text(encoding="utf-8").strip())
    except OSError:
        return Driver()


def refusal(build: TorchBuild, driver: Driver, device_count: int | None = None) -> str:
    """Why no AMD GPU can be used here, with the remedy; empty when nothing speaks against it.

    Args:
        build: of the installed torch.
        driver: of this machine.
        device_count: how many devices torch sees; None before torch was asked.
    """
    if not build.version:
        return "torch is not installed; pip install torch"
    if build.hip is None:
        return f"torch {build.version} is built without ROCm; install a ROCm build (pytorch.org/get-started says how)"
    if driver.error:
        return f"no AMD GPU driver: {driver.error}"
    if device_count == 0:
        names = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        limits = "".join(f" with {name}={os.environ[name]!r}" for name in names if name in os.environ)
        return f"torch {build.version} sees no GPU{limits}; rocminfo shows what the driver sees"
    return ""
