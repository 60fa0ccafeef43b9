"""The choice of an I/O engine: the accelerator's own where it has one, else threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.accelerator.contract import Accelerator, Capability
from ds_core.aio.threaded import ThreadedIO
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from ds_core.aio.contract import AsyncIO
    from ds_core.aio.files import SystemCalls
    from ds_core.config.aio import AioSection

__all__ = ["make_io"]


def make_io(accelerator: Accelerator, config: AioSection, *, calls: SystemCalls | None = None) -> AsyncIO:
    """An engine as the ``aio`` section asks for; the caller closes it.

    Args:
        accelerator: asked first, where it has `Capability.ASYNC_IO`.
        config: the section.
        calls: system calls of the threads; replaceable for tests.

    Raises:
        ConfigError: `aio.use_gds` is true and the accelerator brings no engine for it.
    """
    found = accelerator.async_io(config) if accelerator.has(Capability.ASYNC_IO) else None
    if found is not None:
        return found
    if config.use_gds:
        raise ConfigError(
            f"aio.use_gds is true, and accelerator {accelerator.name} brings no engine that moves data between files"
            f" and device memory; set it to false, or install an accelerator wheel that has one"
        )
    return ThreadedIO(
        block_size=config.block_size,
        queue_depth=config.queue_depth,
        intra_op_parallelism=config.intra_op_parallelism,
        overlap_events=config.overlap_events,
        calls=calls,
    )
