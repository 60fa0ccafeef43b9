"""What this machine has for Ascend NPUs: the driver, the toolkit CANN, and torch's adapter torch_npu."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ds_core.plugins.requirements import installed_version

__all__ = ["Machine", "look", "refusal"]

_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_TOOLKIT_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")


@dataclass(frozen=True, slots=True)
class Machine:
    """Versions as text; empty where there is none.

    Attributes:
        driver: of the Ascend driver.
        toolkit: of CANN; ``"unknown version"`` where it is set up and does not say.
        adapter: of the wheel ``torch-npu``.
        torch: of torch.
        has_module: whether ``torch_npu`` can be found.
    """

    driver: str = ""
    toolkit: str = ""
    adapter: str = ""
    torch: str = ""
    has_module: bool = False


def look(environ: Mapping[str, str] | None = None, driver: Path = _DRIVER) -> Machine:
    """What is here. Imports nothing of the adapter."""
    environ = os.environ if environ is None else environ
    home = next((environ[name] for name in _TOOLKIT_VARIABLES if environ.get(name)), "")
    toolkit = (_said(sorted(Path(home).glob("**/version.info"))[:1]) or "unknown version") if home else ""
    found = importlib.util.find_spec("torch_npu") is not None
    return Machine(
        _said([driver]), toolkit, installed_version("torch-npu") or "", installed_version("torch") or "", found
    )


def refusal(machine: Machine, device_count: int | None = None) -> str:
    """Why no NPU can be used here, with the remedy; empty when nothing speaks against it.

    Args:
        machine: what is here.
        device_count: how many devices the adapter sees; None before it was asked.
    """
    if not machine.has_module:
        return f"torch_npu is not installed; pip install torch-npu=={_two(machine.torch) or '2.x'}.* (it follows torch)"
    if not machine.driver:
        return "no Ascend driver (/usr/local/Ascend/driver/version.info is not there); install Ascend's driver package"
    if not machine.toolkit:
        return "CANN is not set up (ASCEND_TOOLKIT_HOME is not set); install CANN and source its set_env.sh"
    if device_count == 0:
        return "torch_npu sees no device; ASCEND_RT_VISIBLE_DEVICES may hide them, npu-smi info lists them"
    return ""


def _two(version: str) -> str:
    return ".".join(version.partition("+")[0].split(".")[:2])


def _said(files: list[Path]) -> str:
    """The value of ``Version=`` in the first file."""
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            key, _, value = line.partition("=")
            if key.strip().casefold() == "version":
                return value.strip()
    return ""
