"""What ``ds report`` says of Gaudi."""

from __future__ import annotations

from ds_accel_hpu.machine import Machine, look
from ds_core.hooks import DeviceFacts, Mismatch

__all__ = ["facts", "mismatches"]

_UNPROVEN = (
    "everything: tested against a stand-in for habana_frameworks made from its documentation, never on a Gaudi",
    "graphs and streams in lazy mode; hccl; page-locked copies; generator states",
)


def facts() -> DeviceFacts:
    """See `ds_core.hooks.DeviceFacts`."""
    machine = look()
    return DeviceFacts(
        driver=f"habanalabs {machine.driver}" if machine.driver else "none",
        libraries={"habana-torch-plugin": machine.bridge or "none", "torch": machine.torch or "none"},
        left_out=["kernels: Gaudi's kernel compiler is not published; ops run as torch code"],
        mismatches=mismatches(machine),
        unproven=_UNPROVEN,
    )


def mismatches(machine: Machine) -> list[Mismatch]:
    """The driver and the bridge are released together: their first two numbers must agree."""
    if not machine.bridge:
        remedy = "Use Intel's Gaudi container, or install habana-torch-plugin from Intel's Gaudi release."
        return [Mismatch("habana-torch-plugin", "any release", "the release of the driver", "none", remedy)]
    if machine.driver and _release(machine.driver) != _release(machine.bridge):
        remedy = f"Install the release {_release(machine.bridge)} of the driver, or the bridge of the driver's release."
        return [Mismatch("driver", machine.bridge, f"release {_release(machine.bridge)}", machine.driver, remedy)]
    return []


def _release(version: str) -> str:
    return ".".join(version.partition("-")[0].split(".")[:2])
