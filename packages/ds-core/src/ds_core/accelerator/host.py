"""`HostAccelerator`: the host processor as a device, so that ds-core works with no other wheel."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import psutil

from ds_core.accelerator.contract import Accelerator, Capability, MemorySnapshot
from ds_core.accelerator.host_memory import settle_heap, trim_heap
from ds_core.errors import AcceleratorError

if TYPE_CHECKING:
    import torch

__all__ = ["HostAccelerator"]

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


class HostAccelerator(Accelerator):
    """The host processor. One device; memory figures are those of the process."""

    name: ClassVar[str] = "reference"
    device_type: ClassVar[str] = "cpu"
    capabilities = frozenset(
        {
            Capability.ALLOCATOR_STATS,
            Capability.STORAGE_ALIASING,
            Capability.COMPILE,
            Capability.COLLECTIVES,
            Capability.DATA_PTR,
        }
    )

    def device(self, index: int | None = None) -> torch.device:
        """The torch device ``cpu``, which has no index."""
        import torch

        if index not in (None, 0):
            raise AcceleratorError(f"{self.name} has one device, index 0, got {index}.")
        return torch.device(self.device_type)

    def device_count(self) -> int:
        """1: the process is the device."""
        return 1

    def current_device(self) -> int:
        """Always 0."""
        return 0

    def set_device(self, index: int) -> None:
        """Accepts 0, and nothing else."""
        self.device(index)

    def synchronize(self, index: int | None = None) -> None:
        """Returns at once: host work is done when its call returns."""

    def prepare(self) -> None:
        """Keeps the heap small; see `ds_core.accelerator.host_memory`."""
        settle_heap()

    def empty_cache(self) -> None:
        """Gives back what the heap has kept of memory that was freed."""
        trim_heap()

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Processor, and how many cores this process may use."""
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return {"name": platform.processor() or platform.machine(), "cores": str(cores)}

    def rng_state(self, index: int | None = None) -> torch.Tensor:
        """State of the host generator."""
        import torch

        return torch.get_rng_state()

    def set_rng_state(self, state: torch.Tensor, index: int | None = None) -> None:
        """Puts back what `rng_state` gave."""
        import torch

        torch.set_rng_state(state)

    def memory(self, index: int | None = None) -> MemorySnapshot:
        """Resident bytes of the process, their peak, and the machine's memory."""
        return MemorySnapshot(
            allocated_bytes=psutil.Process().memory_info().rss,
            peak_bytes=_peak_rss_bytes(),
            total_bytes=psutil.virtual_memory().total,
        )

    def reset_peak_memory(self, index: int | None = None) -> bool:
        """Starts a new peak where the kernel allows it (Linux), else returns False and the peak stays."""
        try:
            _CLEAR_REFS.write_text("5")
        except OSError:
            return False
        return True

    def dtypes(self) -> frozenset[torch.dtype]:
        """Everything torch computes in on the host."""
        import torch

        return frozenset(
            {
                torch.float64,
                torch.float32,
                torch.bfloat16,
                torch.float16,
                torch.int64,
                torch.int32,
                torch.int16,
                torch.int8,
                torch.uint8,
                torch.bool,
            }
        )


def _peak_rss_bytes() -> int | None:
    # VmHWM can be reset; getrusage's figure cannot, and starts with the parent's where a process was forked.
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
