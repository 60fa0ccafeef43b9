"""`CpuAccelerator`: the host processor, with the instruction-set level its kernels run at."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ds_core.accelerator import Capability, HostAccelerator
from ds_core.errors import OffloadError

if TYPE_CHECKING:
    from ds_core.aio import AsyncIO
    from ds_core.config.aio import AioSection

__all__ = ["CpuAccelerator"]

logger = logging.getLogger(__name__)


class CpuAccelerator(HostAccelerator):
    """The CPU as users name it; what it adds to core's own host device are the kernels behind `ds_core.ops`."""

    name: ClassVar[str] = "cpu"
    capabilities = HostAccelerator.capabilities | {Capability.ASYNC_IO}

    def properties(self, index: int | None = None) -> Mapping[str, str]:
        """Processor, cores, and the level of the kernel library."""
        from ds_accel_cpu.isa import library

        return {**super().properties(index), "kernels": library().target}

    def async_io(self, config: AioSection) -> AsyncIO | None:
        """An engine on io_uring; None where the kernel or a limit forbids it, or `use_gds` asks for another way."""
        from ds_accel_cpu.aio import refusal

        if config.use_gds or refusal():
            return None
        from ds_accel_cpu.aio.uring import UringIO

        try:
            return UringIO(
                block_size=config.block_size,
                queue_depth=config.queue_depth,
                intra_op_parallelism=config.intra_op_parallelism,
                overlap_events=config.overlap_events,
                single_submit=config.single_submit,
            )
        except OffloadError as error:
            logger.warning("threads move tensors to and from files: %s", error)
            return None

    def comm_backend(self) -> str:
        """Shared memory on Linux; `ds_core.comm` takes gloo where that cannot serve."""
        return "shm" if sys.platform == "linux" else super().comm_backend()
