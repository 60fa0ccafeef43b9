"""What this machine has for Gaudi: the driver, and the bridge between torch and the device."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from ds_core.plugins.requirements import installed_version

__all__ = ["Machine", "look", "refusal"]

_BRIDGE = "habana-torch-plugin"
_DRIVER = Path("/sys/module/habanalabs/version")
_NODES = "/dev/accel/accel[0-9]*"


@dataclass(frozen=True, slots=True)
class Machine:
    """Versions as text; empty where there is none.

    Attributes:
        driver: of the kernel module ``habanalabs``.
        bridge: of the wheel ``habana-torch-plugin``.
        torch: of torch.
        has_module: whether ``habana_frameworks.torch`` can be found.
        nodes: device nodes of Gaudi's kind that exist.
    """

    driver: str = ""
    bridge: str = ""
    torch: str = ""
    has_module: bool = False
    nodes: int = 0


def look(driver: Path = _DRIVER, nodes: str = _NODES) -> Machine:
    """What is here. Imports nothing of the bridge."""
    try:
        version = driver.read_text(encoding="utf-8").strip()
    except OSError:
        version = ""
    found = importlib.util.find_spec("habana_frameworks") is not None
    count = len(list(Path("/").glob(nodes.lstrip("/"))))
    return Machine(version, installed_version(_BRIDGE) or "", installed_version("torch") or "", found, count)


def refusal(machine: Machine, device_count: int | None = None) -> str:
    """Why no Gaudi can be used here, with the remedy; empty when nothing speaks against it.

    Args:
        machine: what is here.
        device_count: how many devices the bridge sees; None before it was asked.
    """
    if not machine.has_module:
        what = "habana_frameworks, the bridge between torch and Gaudi, is not installed"
        return f"{what}; use Intel's Gaudi container, or install {_BRIDGE} and its torch from Intel's Gaudi release"
    if not machine.driver:
        return "the kernel module habanalabs is not loaded; install Intel's Gaudi driver on the host"
    if device_count == 0:
        return "habana_frameworks sees no device; HABANA_VISIBLE_MODULES may hide them, hl-smi lists them"
    return ""
