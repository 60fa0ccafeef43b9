"""`FileShards`: shards of parameters in a file, read ahead in the order they are gathered.

Source: Rajbhandari et al., ZeRO-Infinity: Breaking the GPU Memory Wall for Extreme Scale Deep Learning (2021), section
6.2: overlap-centric design.

Note [One shard at hand]
    One buffer holds the shard used last. Pieces of it may be read and written; what was written goes to the file when
    another shard is used, so that an update which comes in tiles reads and writes each shard once. The other buffers
    hold shards that are on their way to the file, or from it, ahead of use.

Note [What comes next]
    Forward and backward use shards in orders that repeat, but one shard is followed by different ones in the two. So
    what follows is looked up by the last two uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from ds_core.aio import BufferPool, Handle, SwapStore
from ds_core.errors import ConfigError
from ds_core.placeholder import is_same_memory
from ds_zero.offload.host import host_empty

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.aio import AsyncIO

__all__ = ["FileShards", "Shard"]

KEY = "zero_optimization.offload_param"


class Shard(NamedTuple):
    """A shard to be kept: its name, the parameters it is of, for messages, and its size and dtype."""

    name: str
    title: str
    numel: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


class FileShards:
    """Shards by name: the first in host memory, up to a limit, the others in the store.

    Args:
        store: this rank's file; closed by `close`.
        io: closed by `close`, after the store.
        buffer_numel: elements of the largest shard allowed in the file.
        resident_numel: elements of shards that stay in host memory.
        accelerator: page-locks what stays in host memory; None: nothing is.

    Attributes:
        pool: the buffers; None before `plan`, and where nothing is in the file.
        reads_ahead: how many reads were begun before they were needed.
    """

    def __init__(
        self,
        store: SwapStore,
        io: AsyncIO,
        *,
        buffer_numel: int,
        resident_numel: int,
        accelerator: Accelerator | None,
    ) -> None:
        self.store: SwapStore = store
        self.pool: BufferPool | None = None
        self.reads_ahead: int = 0
        self._io = io
        self._buffer_numel = buffer_numel
        self._resident_numel = resident_numel
        self._accelerator = accelerator
        self._shards: dict[str, Shard] = {}
        self._written: set[str] = set()
        self._at_hand: str | None = None
        self._buffer: torch.Tensor | None = None
        self._is_changed = False
        self._arriving: dict[str, tuple[torch.Tensor, Handle]] = {}
        self._leaving: list[tuple[torch.Tensor, Handle]] = []
        self._next: dict[tuple[str | None, str | None], str] = {}
        self._uses: tuple[str | None, str | None] = (None, None)

    def plan(self, shards: Sequence[Shard]) -> dict[str, torch.Tensor]:
        """Memory, zero, for those that stay; takes room in the file for the others. Called once.

        Raises:
            ConfigError: a shard for the file is larger than a buffer.
            OffloadError: there is not enough room.
        """
        left = self._resident_numel
        stay: dict[str, torch.Tensor] = {}
        for shard in shards:
            if shard.numel <= left:
                left -= shard.numel
                stay[shard.name] = host_empty(shard.numel, shard.dtype, self._accelerator).zero_()
            else:
                self._shards[shard.name] = shard
        largest = max(self._shards.values(), key=lambda shard: shard.numel, default=None)
        if largest is None:
            return stay
        if largest.numel > self._buffer_numel:
            raise ConfigError(
                f"{KEY}.buffer_size is {self._buffer_numel} elements, and this rank's shard of {largest.title} has "
                f"{largest.numel}; set it to at least {largest.numel}"
            )
        self.store.reserve({name: shard.nbytes for name, shard in self._shards.items()})
        nbytes = max(shard.nbytes for shard in self._shards.values())
        self.pool = self.store.buffer_pool(nbytes, torch.uint8)
        return stay

    def read(self, name: str, *, ahead: bool = False) -> torch.Tensor:
        """The values, 1-D, until the next use of any shard; `ahead`: this is a gather, others follow in their order."""
        self._bring(name)
        assert self._buffer is not None
        values = self._view(name, self._buffer)
        if ahead:
            self._learn(name)
            self._read_ahead()
        return values

    def write(self, name: str, start: int, values: torch.Tensor) -> None:
        """Replaces elements from `start` on by `values`, of any dtype and device, maybe those that `read` gave."""
        is_whole = values.numel() == self._shards[name].numel
        self._bring(name, fetch=not is_whole)
        assert self._buffer is not None
        here = self._view(name, self._buffer)[start : start + values.numel()]
        if not is_same_memory(values, here):
            here.copy_(values.to(here.dtype))
        self._is_changed = True

    def close(self) -> None:
        """Removes the file."""
        for _, handle in [*self._arriving.values(), *self._leaving]:
            handle.wait()
        self._arriving.clear()
        self._leaving.clear()
        self._at_hand = self._buffer = None
        self.store.close()
        self._io.close()

    # --- the shard at hand, see Note [One shard at hand] --------------------------------------------------------

    def _bring(self, name: str, *, fetch: bool = True) -> None:
        if self._at_hand == name:
            return
        self._put_away()
        if name in self._arriving:
            buffer, handle = self._arriving.pop(name)
            self._at_hand, self._buffer = name, buffer
            handle.wait()
            return
        buffer = self._take()
        self._at_hand, self._buffer = name, buffer
        if name not in self._written:
            self._view(name, buffer).zero_()
        elif fetch:
            self.store.get(name, self._bytes(name, buffer)).wait()

    def _put_away(self) -> None:
        name, buffer, is_changed = self._at_hand, self._buffer, self._is_changed
        self._at_hand, self._buffer, self._is_changed = None, None, False
        if name is None or buffer is None:
            return
        if not is_changed:
            self._free(buffer)
            return
        self._written.add(name)
        self._leaving.append((buffer, self.store.put(name, self._bytes(name, buffer))))

    def _view(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        return self._bytes(name, buffer).view(self._shards[name].dtype)

    def _bytes(self, name: str, buffer: torch.Tensor) -> torch.Tensor:
        return buffer[: self._shards[name].nbytes]

    # --- ahead of use, see Note [What comes next] ---------------------------------------------------------------

    def _learn(self, name: str) -> None:
        if self._uses[1] != name:
            self._next[self._uses] = name
            self._uses = (self._uses[1], name)

    def _read_ahead(self) -> None:
        uses, wanted = self._uses, set()
        while True:
            following = self._next.get(uses)
            if following is None or following in wanted or following == self._at_hand:
                return
            wanted.add(following)
            uses = (uses[1], following)
            if following in self._arriving:
                continue
            buffer = self._spare(wanted)
            if buffer is None:
                return
            if following not in self._written:
                self._free(buffer)
                return
            self.reads_ahead += 1
            self._arriving[following] = (buffer, self.store.get(following, self._bytes(following, buffer)))

    # --- buffers ------------------------------------------------------------------------------------------------

    def _spare(self, wanted: set[str]) -> torch.Tensor | None:
        """A buffer nobody needs, or that holds what is not wanted soon."""
        assert self.pool is not None
        if len(self._arriving) + len(self._leaving) + 1 < self.pool.count:
            return self.pool.acquire()
        if self._leaving:
            return self._departed()
        stale = next((name for name in self._arriving if name not in wanted), None)
        if stale is None:
            return None
        buffer, handle = self._arriving.pop(stale)
        handle.wait()
        return buffer

    def _take(self) -> torch.Tensor:
        """A buffer for the shard at hand: a free one, else one that has left, else one read ahead in vain."""
        assert self.pool is not None
        if len(self._arriving) + len(self._leaving) < self.pool.count:
            return self.pool.acquire()
        if self._leaving:
            return self._departed()
        buffer, handle = self._arriving.pop(next(reversed(self._arriving)))
        handle.wait()
        return buffer

    def _departed(self) -> torch.Tensor:
        """The buffer that left first, once its contents are written."""
        buffer, handle = self._leaving.pop(0)
        try:
            handle.wait()
        except BaseException:
            self._free(buffer)
            raise
        return buffer

    def _free(self, buffer: torch.Tensor) -> None:
        assert self.pool is not None
        self.pool.release(buffer)
