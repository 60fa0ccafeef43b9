"""What ds-accel-openbox brings to ds-core. Imports nothing heavy; what is heavy is named."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence

from ds_core.hooks import AcceleratorEntry, Availability, OpImpl, Proof, hookimpl

DS_HOOK_API = (1, 2)


def _is_available() -> Availability:
    # A real device looks for its driver here. This one only has to fit the torch that is installed.
    from ds_accel_openbox.built_for import TORCH

    installed = importlib.metadata.version("torch")
    if installed != TORCH:
        return Availability(False, f"built for torch {TORCH}, installed is {installed}; build the wheel again")
    return Availability(True, device_count=2)


@hookimpl
def ds_accelerators() -> Sequence[AcceleratorEntry]:
    """The pretended device, for those who ask for it: as a floor below the CPU it is never taken by itself."""
    return [
        AcceleratorEntry(
            "openbox",
            is_available=_is_available,
            factory="ds_accel_openbox.accelerator:OpenboxAccelerator",
            priority=-100,  # a real device leaves both of these out
            is_floor=True,
            facts="ds_accel_openbox.facts:facts",
        )
    ]


@hookimpl
def ds_ops() -> Sequence[OpImpl]:
    """One op of the table, to show how; `proof` says how far it was proven, on hardware or less."""
    return [OpImpl("sum_of_squares", "openbox", load="ds_accel_openbox.ops:OPS.sum_of_squares", proof=Proof.EXECUTED)]
