"""The device behind ds-core's contract. What is not overridden is answered through torch, see `Accelerator`."""

from __future__ import annotations

from typing import ClassVar

from ds_core.accelerator import Accelerator, Capability

__all__ = ["{{class}}Accelerator"]


class {{class}}Accelerator(Accelerator):
    """{{summary}}."""

    name: ClassVar[str] = "{{short}}"
    device_type: ClassVar[str] = "privateuseone"  # the torch device type of your backend
    capabilities: frozenset[Capability] = frozenset()  # what it can do itself; core has a default for the rest
