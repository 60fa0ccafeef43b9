"""The server's device behind ds-core's contract. What is not overridden is answered through torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar

import torch

from ds_accel_rgpu.device import load
from ds_accel_rgpu.probe import SERVER
from ds_core.accelerator import Accelerator, Capability

__all__ = ["RgpuAccelerator"]


class RgpuAccelerator(Accelerator):
    """Tensors in another process. Here they have no address and no storage, and nothing goes beyond the contract."""

    name: ClassVar[str] = "rgpu"
    device_type: ClassVar[str] = "rgpu"
    exported_variables: ClassVar[tuple[str, ...]] = (SERVER,)
    capabilities: frozenset[Capability] = frozenset()

    def __init__(self) -> None:
        load()

    def dtypes(self) -> frozenset[torch.dtype]:
        """What torch computes in where the server runs."""
        floating = {torch.float64, torch.float32, torch.bfloat16, torch.float16}
        return frozenset(floating | {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool})

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Where the tensors are."""
        return {"name": "rgpu", "server": os.environ.get(SERVER, "")}
