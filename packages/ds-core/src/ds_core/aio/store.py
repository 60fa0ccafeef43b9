"""`SwapStore`: one rank's offloaded tensors, by name, in one preallocated file."""

from __future__ import annotations

import enum
import errno
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ds_core.aio.contract import AsyncIO, Handle
from ds_core.aio.folder import SwapFolder
from ds_core.aio.memory import BufferPool, with_padding
from ds_core.aio.room import NO_ROOM, Allocate, allocate, take_room
from ds_core.aio.slots import Slot, is_adjacent, plan_slots
from ds_core.errors import OffloadError, did_you_mean

__all__ = ["SwapStore"]

logger = logging.getLogger(__name__)


class _Life(enum.Enum):
    """RESERVED -> WRITTEN by a put that succeeds; any -> BROKEN by one that fails; BROKEN -> WRITTEN by the next."""

    RESERVED = "was never written"
    WRITTEN = "is whole"
    BROKEN = "is lost, since writing it failed"


@dataclass(eq=False)
class _Entry:
    name: str
    slot: Slot
    life: _Life = _Life.RESERVED
    last: _Transfer | None = field(default=None, repr=False)


class _Transfer:
    """A `Handle` over entries that lie next to each other."""

    def __init__(self, entries: Sequence[_Entry], handle: Handle, *, writes: bool, setting: str) -> None:
        self._entries = entries
        self._handle = handle
        self._writes = writes
        self._setting = setting
        self._is_done = False
        self._error: OffloadError | None = None

    def wait(self) -> None:
        """Returns when the tensors are moved.

        Raises:
            OffloadError: they could not be; names them, the file, the offset, the reason and the setting.
        """
        if not self._is_done:
            try:
                self._handle.wait()
            except OffloadError as error:
                self._error = self._explain(error)
            self._end()
        if self._error is not None:
            raise self._error

    def _end(self) -> None:
        self._is_done = True
        for entry in self._entries:
            entry.last = None if entry.last is self else entry.last
            if self._writes:
                entry.life = _Life.BROKEN if self._error else _Life.WRITTEN

    def _explain(self, error: OffloadError) -> OffloadError:
        cause = error.__cause__
        code = cause.errno if isinstance(cause, OSError) else None
        remedy = "the other tensors can still be read"
        if code in NO_ROOM:
            remedy = f"free space there or point {self._setting} at a larger disk; {remedy}"
        elif code == errno.EIO:
            remedy = f"the disk may be failing, see the kernel's log and point {self._setting} at another; {remedy}"
        names = ", ".join(entry.name for entry in self._entries)
        found = OffloadError(f"{'storing' if self._writes else 'fetching'} {names}: {error}; {remedy}")
        found.__cause__ = cause or error
        return found


class SwapStore:
    """Named 1-D tensors of one rank, in one file below `folder`.

    The file lives in a folder of this process, which is gone after `close` and when the process ends; folders of dead
    processes are removed first. Every tensor starts on a block boundary and they lie in the order of `reserve`, so that
    those used together can be moved by one request. Not safe to use from several threads.

    Args:
        folder: an existing folder on a local disk.
        rank: rank of this process.
        io: moves the data; stays the caller's to close, after the store.
        buffer_count: buffers of each pool made by `buffer_pool`.
        setting: the config section that `folder` and `buffer_count` are from, for messages.
        allocate: how room in the file is reserved.

    Raises:
        OffloadError: `folder` is missing or not writable.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        io: AsyncIO,
        *,
        buffer_count: int,
        setting: str = "zero_optimization.offload_optimizer",
        allocate: Allocate = allocate,
    ) -> None:
        self._io = io
        self._buffer_count = buffer_count
        self._path_setting = f"{setting}.nvme_path"
        self._count_setting = f"{setting}.buffer_count"
        self._allocate = allocate
        self._folder = SwapFolder(folder, rank, self._path_setting)
        self._entries: dict[str, _Entry] = {}
        self._buffers: list[torch.Tensor] = []
        self._is_closed = False
        self.path = self._folder.path / f"rank-{rank:05d}.bin"
        self.nbytes = 0

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Takes room for tensors, in bytes by name, side by side after those reserved before.

        Raises:
            OffloadError: there is not enough room, or a name is taken. Nothing is reserved then.
        """
        self._check_open()
        taken = sorted(self._entries.keys() & sizes.keys())
        if taken:
            raise OffloadError(f"the store has {', '.join(taken)} already; reserve each name once")
        slots = plan_slots(sizes, self.nbytes)
        end = max((slot.end_bytes for slot in slots.values()), default=self.nbytes)
        take_room(self.path, self.nbytes, end - self.nbytes, setting=self._path_setting, allocate=self._allocate)
        self._entries.update((name, _Entry(name, slot)) for name, slot in slots.items())
        self.nbytes = end

    def slot(self, name: str) -> Slot:
        """Where `name` lies in the file.

        Raises:
            OffloadError: no such tensor.
        """
        return self._find([name])[0].slot

    def put(self, name: str, tensor: torch.Tensor) -> Handle:
        """Begins to write `tensor`, of the size reserved for `name`; leave it alone until `wait` returns.

        Raises:
            OffloadError: the size is another one, or what was begun before for `name` and not waited for failed.
        """
        return self._begin([name], tensor, self.slot(name).nbytes, writes=True)

    def get(self, name: str, out: torch.Tensor) -> Handle:
        """Begins to fill `out` with what was last put under `name`; its contents are there when `wait` returns.

        Raises:
            OffloadError: as `put`, or nothing was put, or writing it failed.
        """
        return self._begin([name], out, self.slot(name).nbytes, writes=False)

    def put_adjacent(self, names: Sequence[str], buffer: torch.Tensor) -> Handle:
        """`put` for tensors reserved side by side, in one request; `buffer` is laid out as `views` says."""
        return self._begin(names, buffer, self.span_bytes(names), writes=True)

    def get_adjacent(self, names: Sequence[str], out: torch.Tensor) -> Handle:
        """`get` for tensors reserved side by side, in one request; `out` is laid out as `views` says."""
        return self._begin(names, out, self.span_bytes(names), writes=False)

    def span_bytes(self, names: Sequence[str]) -> int:
        """Size of a buffer for tensors reserved side by side: whole blocks for each.

        Raises:
            OffloadError: no name, an unknown one, or names in another order than reserved.
        """
        slots = [entry.slot for entry in self._find(names)]
        if not slots or not is_adjacent(slots):
            raise OffloadError(
                f"tensors moved together must lie side by side in the file, got {', '.join(names) or 'none'}; name them"
                f" in the order of reserve, without a gap"
            )
        return slots[-1].end_bytes - slots[0].offset_bytes

    def views(self, names: Sequence[str], buffer: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
        """Each tensor's part of `buffer`, which holds `span_bytes(names)` bytes, as `dtype`."""
        slots = [entry.slot for entry in self._find(names)]
        whole = buffer.view(torch.uint8)
        starts = [slot.offset_bytes - slots[0].offset_bytes for slot in slots]
        return [whole[start : start + slot.nbytes].view(dtype) for start, slot in zip(starts, slots, strict=True)]

    def buffer_pool(self, numel: int, dtype: torch.dtype) -> BufferPool:
        """`buffer_count` buffers, allocated now, and known to the engine until the store is closed."""
        pool = BufferPool(self._buffer_count, numel, dtype, setting=self._count_setting)
        for buffer in pool.buffers:
            self._io.register(buffer)
        self._buffers += pool.buffers
        return pool

    def close(self) -> None:
        """Waits for what is under way and removes the file; any number of times. Failures still unseen are logged."""
        self._is_closed = True
        for entry in self._entries.values():
            if entry.last is not None:
                try:
                    entry.last.wait()
                except OffloadError as error:
                    logger.error("nobody waited for a transfer that failed: %s", error)
        for buffer in self._buffers:
            self._io.unregister(buffer)
        self._buffers.clear()
        self._entries.clear()
        self._folder.close()

    def _begin(self, names: Sequence[str], tensor: torch.Tensor, nbytes: int, *, writes: bool) -> Handle:
        self._check_open()
        entries = self._find(names)
        self._check_size(names, tensor, nbytes)
        for entry in entries:
            if entry.last is not None:  # two requests for the same bytes would race
                entry.last.wait()
            if not writes and entry.life is not _Life.WRITTEN:
                raise OffloadError(f"{entry.name} cannot be fetched: it {entry.life.value}; put it first")
        offset = entries[0].slot.offset_bytes
        if writes:
            handle = self._io.write(with_padding(tensor), self.path, offset)
        else:
            handle = self._io.read(tensor, self.path, offset)
        transfer = _Transfer(entries, handle, writes=writes, setting=self._path_setting)
        for entry in entries:
            entry.last = transfer
        return transfer

    def _find(self, names: Sequence[str]) -> list[_Entry]:
        for name in names:
            if name not in self._entries:
                raise OffloadError(f"the store has no tensor {name!r}; reserve it.{did_you_mean(name, self._entries)}")
        return [self._entries[name] for name in names]

    @staticmethod
    def _check_size(names: Sequence[str], tensor: torch.Tensor, nbytes: int) -> None:
        got = tensor.numel() * tensor.element_size()
        if tensor.dim() != 1 or got != nbytes:
            raise OffloadError(
                f"{', '.join(names)} takes a 1-D tensor of {nbytes} bytes, got shape {tuple(tensor.shape)} of"
                f" {got} bytes"
            )

    def _check_open(self) -> None:
        if self._is_closed:
            raise OffloadError("the store is closed; its file is gone")
