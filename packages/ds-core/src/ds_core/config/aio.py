"""The config section of asynchronous file I/O: ``aio``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from ds_core.config.section import Moved, Section

__all__ = ["AioSection"]


class AioSection(Section):
    """Asynchronous file I/O, as offload to NVMe uses it."""

    block_size: Annotated[int, Field(ge=4096, multiple_of=4096)] = 1_048_576
    """Bytes moved at a time."""
    queue_depth: Annotated[int, Field(ge=1, le=1024)] = 8
    """Blocks under way at a time, for each of `intra_op_parallelism`."""
    intra_op_parallelism: Annotated[int, Field(ge=1, le=64)] = 1
    """Parts of one tensor that are moved at the same time."""
    overlap_events: bool = True
    """Start a block as soon as another one ends; false starts `queue_depth` blocks once all earlier ones ended."""
    single_submit: bool = False
    """Tell the kernel of each block by a system call of its own; false tells it of all blocks that can start at once,
    where the engine is io_uring's (threads have no other way than true)."""
    use_gds: bool = False
    """Move data between files and device memory directly; needs an accelerator wheel that can."""

    legacy_keys: ClassVar[Mapping[str, str | Moved]] = {"thread_count": "intra_op_parallelism"}
