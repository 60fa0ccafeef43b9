"""`Window`: a range of bytes of a file, read with bounds; what every reader of foreign files stands on."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ds_core.errors import CheckpointError

__all__ = ["Window", "open_window"]


@dataclass(frozen=True, slots=True)
class Window:
    """`size` bytes of `path` that begin at byte `start`. The file is opened for each read and never held open."""

    path: Path
    start: int
    size: int

    def part(self, start: int, size: int, what: str) -> Window:
        """The window of `size` bytes at `start` of this one.

        Raises:
            CheckpointError: it would leave this window.
        """
        if start < 0 or size < 0 or start + size > self.size:
            raise CheckpointError(
                f"{self.path}: {what} would be bytes {start} to {start + size} of {self.size}; the file is cut short "
                "or damaged"
            )
        return Window(self.path, self.start + start, size)

    def read(self, start: int = 0, size: int | None = None) -> bytes:
        """`size` bytes from `start` on, by default all that follow."""
        size = self.size - start if size is None else size
        self.part(start, size, "what was asked for")  # before memory is taken for it
        target = bytearray(size)
        self.read_into(memoryview(target), start)
        return bytes(target)

    def read_into(self, target: memoryview, start: int = 0) -> None:
        """Fills `target` with the bytes from `start` on.

        Raises:
            CheckpointError: the window, or the file, ends before.
        """
        span = self.part(start, len(target), "what was asked for")
        done = 0
        with self.path.open("rb", buffering=0) as file:
            while done < len(target):
                count = os.preadv(file.fileno(), [target[done:]], span.start + done)
                if count == 0:
                    raise CheckpointError(f"{self.path} ended {len(target) - done} bytes too early; it is cut short")
                done += count


def open_window(path: Path, within: Path | None = None) -> Window:
    """The whole of a regular file.

    Args:
        path: the file; a symbolic link is followed.
        within: the folder in which the file must be in the end; None takes a link to anywhere.

    Raises:
        CheckpointError: no regular file is there, it is too much to be one, or a link leads out of `within`.
    """
    try:
        real = path.resolve(strict=True)
        status = real.stat()
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is no regular file; a checkpoint holds only those")
    if within is not None and not real.is_relative_to(within.resolve()):
        raise CheckpointError(
            f"{path} is a symbolic link that leads out of the checkpoint, to {real}; copy the file in its place"
        )
    return Window(path, 0, status.st_size)
