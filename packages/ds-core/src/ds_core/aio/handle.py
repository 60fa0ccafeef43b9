"""`aio_handle`: file I/O under the names DeepSpeed's users know, on whatever engine the host has."""

from __future__ import annotations

import ctypes
import logging
from pathlib import Path

import torch

from ds_core.accelerator import in_use
from ds_core.aio.contract import ALIGNMENT, Handle
from ds_core.aio.make import host_io
from ds_core.aio.memory import aligned_empty, byte_view, round_up
from ds_core.config.aio import AioSection
from ds_core.errors import OffloadError

__all__ = ["AioHandle", "aio_handle", "aio_read", "aio_write"]

logger = logging.getLogger(__name__)

_CHUNK = 1 << 24  # bytes compared at a time


class AioHandle:
    """Reads and writes whole tensors, one after the other or while the caller goes on. Used by one thread.

    Methods that begin a transfer return 0, `wait` returns how many it saw through, and methods that do both return 1.
    Host tensors are moved in place; those of a device go through a host buffer of their size.

    Args:
        block_size: bytes moved at a time, a multiple of 4096.
        queue_depth: blocks under way in each part.
        single_submit: tell the kernel of each block by a call of its own.
        overlap_events: start a block as soon as another ends; else in batches of `queue_depth`.
        intra_op_parallelism: parts of one tensor that are moved at the same time.

    Raises:
        OffloadError: a setting that cannot work.
    """

    def __init__(
        self,
        block_size: int = 1 << 20,
        queue_depth: int = 128,
        single_submit: bool = False,
        overlap_events: bool = False,
        intra_op_parallelism: int = 1,
    ) -> None:
        # Not validated: the engine itself says what cannot work, in the words of a caller without a config.
        self._section = AioSection.model_construct(
            block_size=block_size,
            queue_depth=queue_depth,
            single_submit=single_submit,
            overlap_events=overlap_events,
            intra_op_parallelism=intra_op_parallelism,
        )
        self._io = host_io(self._section)
        self._pending: list[_Pending] = []
        self._locked: dict[int, torch.Tensor] = {}

    # ---- settings

    def get_block_size(self) -> int:
        """Bytes moved at a time."""
        return self._section.block_size

    def get_queue_depth(self) -> int:
        """Blocks under way in each part."""
        return self._section.queue_depth

    def get_single_submit(self) -> bool:
        """Whether each block is told to the kernel by itself."""
        return self._section.single_submit

    def get_overlap_events(self) -> bool:
        """Whether a block starts as soon as another ends."""
        return self._section.overlap_events

    def get_intra_op_parallelism(self) -> int:
        """Parts of one tensor that are moved at the same time."""
        return self._section.intra_op_parallelism

    def get_alignment(self) -> int:
        """Bytes on whose multiples memory is moved without a copy."""
        return ALIGNMENT

    # ---- transfers

    def read(self, buffer: torch.Tensor, filename: str | Path, validate: bool = False) -> int:
        """Fills `buffer` from the beginning of a file; returns 1."""
        return self.pread(buffer, filename, validate, False)

    def write(self, buffer: torch.Tensor, filename: str | Path, validate: bool = False) -> int:
        """Writes `buffer` to the beginning of a file; returns 1."""
        return self.pwrite(buffer, filename, validate, False)

    def pread(
        self, buffer: torch.Tensor, filename: str | Path, validate: bool, is_async: bool, file_offset: int = 0
    ) -> int:
        """Fills `buffer` from byte `file_offset` on.

        Args:
            buffer: contiguous, of any dtype.
            filename: the file.
            validate: read it again by ordinary means and compare.
            is_async: return 0 at once, and leave the rest to `wait`.
            file_offset: bytes.

        Raises:
            OffloadError: it cannot be read, ends early, or differs from what is found by ordinary means.
        """
        return self._begin(_Pending(buffer, Path(filename), file_offset, writes=False, validate=validate), is_async)

    def pwrite(
        self, buffer: torch.Tensor, filename: str | Path, validate: bool, is_async: bool, file_offset: int = 0
    ) -> int:
        """Writes `buffer` at byte `file_offset`, and changes no other byte of the file; arguments as in `pread`.

        Raises:
            OffloadError: it cannot be written, or differs from what is found by ordinary means.
        """
        return self._begin(_Pending(buffer, Path(filename), file_offset, writes=True, validate=validate), is_async)

    def sync_pread(self, buffer: torch.Tensor, filename: str | Path, file_offset: int = 0) -> int:
        """Fills `buffer` from byte `file_offset` on; returns 1."""
        return self.pread(buffer, filename, False, False, file_offset)

    def sync_pwrite(self, buffer: torch.Tensor, filename: str | Path, file_offset: int = 0) -> int:
        """Writes `buffer` at byte `file_offset`; returns 1."""
        return self.pwrite(buffer, filename, False, False, file_offset)

    def async_pread(self, buffer: torch.Tensor, filename: str | Path, file_offset: int = 0) -> int:
        """Begins to fill `buffer`; leave it alone until `wait`. Returns 0."""
        return self.pread(buffer, filename, False, True, file_offset)

    def async_pwrite(self, buffer: torch.Tensor, filename: str | Path, file_offset: int = 0) -> int:
        """Begins to write `buffer`; do not change it until `wait`. Returns 0."""
        return self.pwrite(buffer, filename, False, True, file_offset)

    def wait(self) -> int:
        """Returns when everything begun is done, and how many transfers that were.

        Raises:
            OffloadError: the first failure; the others have ended as well.
        """
        pending, self._pending = self._pending, []
        errors = []
        for one in pending:
            try:
                one.finish()
            except OffloadError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return len(pending)

    def close(self) -> None:
        """Waits for what is under way, unlocks memory and ends the threads; any number of times."""
        for tensor in list(self._locked.values()):
            self.free_cpu_locked_tensor(tensor)
        self._io.close()

    # ---- locked memory

    def new_cpu_locked_tensor(self, num_elem: int, example_tensor: torch.Tensor) -> torch.Tensor:
        """An uninitialized 1-D host tensor of the example's dtype, on a block boundary and locked into memory.

        Where the limit of locked memory (``ulimit -l``) is too low it is not locked, which is said once and costs
        speed at most; `is_pinned` tells.
        """
        tensor = aligned_empty(num_elem, example_tensor.dtype)
        if _lock(tensor):
            self._locked[tensor.data_ptr()] = tensor
            self._io.register(tensor)
        return tensor

    def free_cpu_locked_tensor(self, tensor: torch.Tensor) -> bool:
        """Unlocks what `new_cpu_locked_tensor` gave; False when it was not locked."""
        held = self._locked.pop(tensor.data_ptr(), None)
        if held is None:
            return False
        self._io.unregister(held)
        _libc().munlock(ctypes.c_void_p(held.data_ptr()), ctypes.c_size_t(_nbytes(held)))
        return True

    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether the memory of `tensor` is locked, by this handle or by an accelerator."""
        start = tensor.data_ptr()
        if tensor.device.type != "cpu":
            return False
        end = start + tensor.numel() * tensor.element_size()
        for address, held in self._locked.items():
            if address <= start and end <= address + held.numel() * held.element_size():
                return True
        accelerator = in_use()
        return accelerator is not None and accelerator.is_pinned(tensor)

    def _begin(self, transfer: _Pending, is_async: bool) -> int:
        begin = self._io.write if transfer.writes else self._io.read
        transfer.handle = begin(transfer.host, transfer.path, transfer.offset)
        if is_async:
            self._pending.append(transfer)
            return 0
        transfer.finish()
        return 1


aio_handle = AioHandle


def aio_read(
    buffer: torch.Tensor,
    filename: str | Path,
    block_size: int = 1 << 20,
    queue_depth: int = 128,
    single_submit: bool = False,
    overlap_events: bool = False,
    validate: bool = False,
) -> int:
    """Fills `buffer` from the beginning of a file, with an engine of its own; returns 1. See `AioHandle`."""
    handle = AioHandle(block_size, queue_depth, single_submit, overlap_events)
    try:
        return handle.read(buffer, filename, validate)
    finally:
        handle.close()


def aio_write(
    buffer: torch.Tensor,
    filename: str | Path,
    block_size: int = 1 << 20,
    queue_depth: int = 128,
    single_submit: bool = False,
    overlap_events: bool = False,
    validate: bool = False,
) -> int:
    """Writes `buffer` to the beginning of a file, with an engine of its own; returns 1. See `AioHandle`."""
    handle = AioHandle(block_size, queue_depth, single_submit, overlap_events)
    try:
        return handle.write(buffer, filename, validate)
    finally:
        handle.close()


class _Pending:
    """One transfer, from the caller's tensor to the check of what came of it."""

    def __init__(self, buffer: torch.Tensor, path: Path, offset: int, *, writes: bool, validate: bool) -> None:
        self.path = path
        self.offset = offset
        self.writes = writes
        self.handle: Handle | None = None
        self._buffer = buffer
        self._validate = validate
        self.host = buffer
        if buffer.device.type != "cpu":
            self.host = aligned_empty(buffer.numel(), buffer.dtype)
            if writes:
                self.host.copy_(buffer.reshape(-1))

    def finish(self) -> None:
        assert self.handle is not None
        self.handle.wait()
        if self._validate:
            self._compare()
        if self.host is not self._buffer and not self.writes:
            self._buffer.copy_(self.host.view(self._buffer.shape))

    def _compare(self) -> None:
        view = byte_view(self.host)
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for start in range(0, len(view), _CHUNK):
                part = view[start : start + _CHUNK]
                if file.read(len(part)) != part:
                    verb = "written to" if self.writes else "read from"
                    raise OffloadError(
                        f"what was {verb} {self.path} between bytes {self.offset + start} and"
                        f" {self.offset + start + len(part)} is not what is there: does another program write to it?"
                    )


def _nbytes(tensor: torch.Tensor) -> int:
    return round_up(tensor.numel() * tensor.element_size())


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _lock(tensor: torch.Tensor) -> bool:
    if not tensor.numel() or _libc().mlock(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(_nbytes(tensor))) == 0:
        return bool(tensor.numel())
    logger.warning("%d bytes cannot be locked into memory; the limit is ulimit -l", _nbytes(tensor))
    return False
