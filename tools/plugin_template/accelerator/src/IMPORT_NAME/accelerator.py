"""The device behind ds-core's contract. What is not overridden is answered through torch, see `Accelerator`."""

from __future__ import annotations

from typing import ClassVar

import torch

from {{import}}.device import DEVICE_TYPE, load
from ds_core.accelerator import Accelerator, Capability

__all__ = ["{{class}}Accelerator"]


class {{class}}Accelerator(Accelerator):
    """{{summary}}."""

    name: ClassVar[str] = "{{key}}"
    device_type: ClassVar[str] = DEVICE_TYPE
    capabilities: frozenset[Capability] = frozenset()  # what it can do itself; core has a default for the rest

    def __init__(self) -> None:
        load()

    def dtypes(self) -> frozenset[torch.dtype]:
        """What the device computes in."""
        return frozenset({torch.float32})
