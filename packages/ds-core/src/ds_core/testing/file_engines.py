"""The engines for files that run here, for tests that ask the same of each."""

from __future__ import annotations

from typing import Any

from ds_core.aio.make import host_io
from ds_core.aio.request import FileIO
from ds_core.aio.threaded import ThreadedIO
from ds_core.config.aio import AioSection

__all__ = ["KINDS", "file_engine"]

KINDS = ("threads", "host")
"""ds-core's threads, and what the installed wheel of the host brings."""


def file_engine(kind: str) -> type[FileIO[Any]] | None:
    """The class of an engine, one of `KINDS`; None where the host's is threads too, or takes no `SystemCalls`."""
    if kind == "threads":
        return ThreadedIO
    io = host_io(AioSection())
    io.close()
    return type(io) if isinstance(io, FileIO) and not isinstance(io, ThreadedIO) else None
