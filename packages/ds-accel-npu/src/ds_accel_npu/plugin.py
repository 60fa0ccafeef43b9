"""What ds-accel-npu brings to ds-core: Ascend NPUs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from ds_core.hooks import AcceleratorEntry, Availability, hookimpl

DS_HOOK_API = (1, 2)


def _is_available() -> Availability:
    from ds_accel_npu.machine import look, refusal

    machine = look()
    reason = refusal(machine)
    if reason:
        return Availability(False, reason)
    count = int(importlib.import_module("torch_npu").npu.device_count())
    reason = refusal(machine, count)
    return Availability(not reason, reason, count)


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    """NPUs through torch_npu."""
    return [
        AcceleratorEntry(
            "npu",
            is_available=_is_available,
            factory="ds_accel_npu.accelerator:NpuAccelerator",
            device_nodes=("/dev/davinci[0-9]*",),
            facts="ds_accel_npu.facts:facts",
        )
    ]
