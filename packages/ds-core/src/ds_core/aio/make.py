"""The choice of an I/O engine: the accelerator's own, else the one the host's wheel brings, else threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.accelerator.contract import Accelerator, Capability
from ds_core.accelerator.host_half import host_half
from ds_core.aio.threaded import ThreadedIO
from ds_core.errors import ConfigError

if TYPE_CHECKING:
    from ds_core.aio.contract import AsyncIO
    from ds_core.aio.files import SystemCalls
    from ds_core.config.aio import AioSection
    from ds_core.plugins import PluginManager

__all__ = ["host_io", "make_io", "threaded_io"]


def make_io(
    accelerator: Accelerator,
    config: AioSection,
    *,
    calls: SystemCalls | None = None,
    manager: PluginManager | None = None,
) -> AsyncIO:
    """An engine as the ``aio`` section asks for; the caller closes it.

    Files are the host's, whatever the device: an accelerator that brings no engine of its own gets the host's.

    Args:
        accelerator: asked first, where it has `Capability.ASYNC_IO`.
        config: the section.
        calls: system calls of the threads, which then do the work; replaceable for tests.
        manager: the plugins the host's engine is looked for in; the process-wide ones when None.

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
    return threaded_io(config, calls) if calls is not None else host_io(config, manager=manager)


def host_io(config: AioSection, *, manager: PluginManager | None = None) -> AsyncIO:
    """The best engine the host has: what the installed wheel of the cpu brings, else threads."""
    host = host_half(manager)
    found = host.async_io(config) if host is not None and host.has(Capability.ASYNC_IO) else None
    return threaded_io(config) if found is None else found


def threaded_io(config: AioSection, calls: SystemCalls | None = None) -> ThreadedIO:
    """The engine that needs nothing but threads."""
    return ThreadedIO(
        block_size=config.block_size,
        queue_depth=config.queue_depth,
        intra_op_parallelism=config.intra_op_parallelism,
        overlap_events=config.overlap_events,
        calls=calls,
    )
