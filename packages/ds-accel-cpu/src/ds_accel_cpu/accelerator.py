"""`CpuAccelerator`: the host processor, with the instruction-set level its kernels run at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ds_core.accelerator import HostAccelerator

__all__ = ["CpuAccelerator"]


class CpuAccelerator(HostAccelerator):
    """The CPU as users name it; what it adds to core's own host device are the kernels behind `ds_core.ops`."""

    name: ClassVar[str] = "cpu"

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Processor, cores, and the level of the kernel library."""
        from ds_accel_cpu.isa import library

        return {**super().properties(index), "kernels": library().target}
