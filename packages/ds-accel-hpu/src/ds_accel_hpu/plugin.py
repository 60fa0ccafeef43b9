"""What ds-accel-hpu brings to ds-core: Intel Gaudi."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from ds_core.hooks import AcceleratorEntry, Availability, hookimpl

DS_HOOK_API = (1, 2)


def _is_available() -> Availability:
    from ds_accel_hpu.machine import look, refusal

    machine = look()
    reason = refusal(machine)
    if reason:
        return Availability(False, reason)
    hpu = importlib.import_module("habana_frameworks.torch.hpu")
    count = int(hpu.device_count()) if hpu.is_available() else 0
    reason = refusal(machine, count)
    return Availability(not reason, reason, count)


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    """Gaudi through habana_frameworks."""
    return [
        AcceleratorEntry(
            "hpu",
            is_available=_is_available,
            factory="ds_accel_hpu.accelerator:HpuAccelerator",
            device_nodes=("/dev/accel/accel[0-9]*", "/dev/hl[0-9]*"),
            facts="ds_accel_hpu.facts:facts",
        )
    ]
