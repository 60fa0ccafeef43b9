"""What {{dist}} brings to ds-core. Imports nothing heavy; what is heavy is named."""

from __future__ import annotations

from collections.abc import Sequence

from ds_core.hooks import AcceleratorEntry, hookimpl
from {{import}}.probe import DEVICE_NODES, probe

DS_HOOK_API = (1, 0)


@hookimpl
def ds_accelerators() -> Sequence[AcceleratorEntry]:
    """The device this wheel serves."""
    return [
        AcceleratorEntry(
            name="{{key}}",
            is_available=probe,
            factory="{{import}}.accelerator:{{class}}Accelerator",
            device_nodes=DEVICE_NODES,
        ),
    ]
