"""The contract of asynchronous tensor I/O: what an engine offers, whoever brings it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

__all__ = ["ALIGNMENT", "AsyncIO", "Handle"]

ALIGNMENT = 4096
"""Bytes. Memory, file offset and size that are multiples of it can move between a device and memory without a copy."""


class Handle(Protocol):
    """One request under way."""

    def wait(self) -> None:
        """Returns when the request is done; any number of times, with the same outcome.

        Raises:
            OffloadError: it failed; the message has path, offset, size and the system's reason, and the OSError, where
                there was one, is its cause.
        """


class AsyncIO(Protocol):
    """Moves tensors from and to files while the caller goes on.

    A tensor belongs to its request, with its memory, until `Handle.wait` returns: do not write to one that is being
    written, nor touch one that is being read. Requests may complete in any order; wait for one before asking for
    another that overlaps it in the file. Nothing is made durable: the data is gone with the machine's power.
    """

    def read(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> Handle:
        """Fills a contiguous `tensor` with the file's bytes from `offset_bytes` on."""

    def write(self, tensor: torch.Tensor, path: Path, offset_bytes: int) -> Handle:
        """Writes a contiguous `tensor` at `offset_bytes`, and no other byte of the file; makes the file if needed."""

    def register(self, buffer: torch.Tensor) -> None:
        """Says that the memory of `buffer` will be moved again and again, which an engine may prepare for.

        It then stays alive until `unregister` or `close`. What is moved need not be registered.
        """

    def unregister(self, buffer: torch.Tensor) -> None:
        """Takes `register` back; does nothing for memory that was not registered."""

    def close(self) -> None:
        """Waits for what is under way and frees threads and memory; any number of times."""
