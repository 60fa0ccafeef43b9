"""`FilePlacement`: masters and optimizer states in a file, brought to host memory a tile at a time for the update.

Source: Rajbhandari et al., ZeRO-Infinity: Breaking the GPU Memory Wall for Extreme Scale Deep Learning (2021), section
5.2: the optimizer step is a pipeline of reads, updates and writes.

Note [A tile]
    The master and the states of one piece lie side by side in the file, so one request moves them. In memory they are
    views of one buffer of a pool, and the pool is all the memory there is: ``buffer_count`` tiles, whatever the size
    of the state. Outside of `FilePlacement.visit` the optimizer's tensors have shapes and no memory, and read as NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ds_core.aio import BufferPool, Handle, SwapStore, pipelined
from ds_core.errors import ConfigError
from ds_core.optim.lazy import PacksStates, StartsStates
from ds_core.placeholder import is_same_memory, placeholder, show
from ds_core.state import Deferred
from ds_zero.offload.host import HostPlacement

if TYPE_CHECKING:
    from ds_core.aio import AsyncIO
    from ds_core.masters import MasterPiece
    from ds_core.placement import Work
    from ds_core.space import UpdateSpace

__all__ = ["FilePlacement", "FilePolicy"]

MASTER = ""


@dataclass(frozen=True, slots=True)
class FilePolicy:
    """How tiles move.

    Attributes:
        read_ahead: read the next tile while one is updated.
        write_behind: write a tile while the next is updated.
        fast_init: do not write states that are zero.
    """

    read_ahead: bool = False
    write_behind: bool = False
    fast_init: bool = False


@dataclass(slots=True)
class _Tile:
    """One piece's tensors in the file.

    Attributes:
        names: of the tensors in the store, in the file's order.
        dtypes: of the tensors, by the optimizer's names; the master is `MASTER`.
        fills: what states start from.
        is_begun: the states were written; else they are what they start from.
    """

    names: list[str]
    dtypes: dict[str, torch.dtype]
    fills: dict[str, float]
    is_begun: bool = False


class _Arrival:
    """A buffer that is being filled."""

    def __init__(self, buffer: torch.Tensor, handle: Handle | None) -> None:
        self._buffer = buffer
        self._handle = handle

    def wait(self) -> torch.Tensor:
        """The buffer, filled."""
        if self._handle is not None:
            self._handle.wait()
        return self._buffer


class _Departure:
    """A buffer that goes back to the pool when its contents are written."""

    def __init__(self, placement: FilePlacement, buffer: torch.Tensor, handle: Handle | None) -> None:
        self._placement = placement
        self._buffer = buffer
        self._handle = handle

    def wait(self) -> None:
        """Returns when the buffer is free."""
        try:
            if self._handle is not None:
                self._handle.wait()
        finally:
            self._placement.free(self._buffer)


class FilePlacement(HostPlacement):
    """As `HostPlacement`, with what lives on the host kept in a store.

    Args:
        store: this rank's file; closed by `close`.
        io: closed by `close`, after the store.
        policy: how tiles move.
        more: arguments of `HostPlacement`.

    Attributes:
        store: this rank's file.
        pool: the buffers; None before `adopt`.
    """

    stores = True

    def __init__(self, store: SwapStore, io: AsyncIO, policy: FilePolicy, **more: Any) -> None:
        super().__init__(**more)
        self.store: SwapStore = store
        self.pool: BufferPool | None = None
        self._io = io
        self._policy = policy
        self._optimizer: torch.optim.Optimizer | None = None
        self._tiles: dict[int, _Tile] = {}
        """By id of the piece."""
        self._held: list[torch.Tensor] = []
        self._shown: tuple[int, torch.Tensor] | None = None
        """The piece whose tile was read last for `deferred`, and its buffer."""

    def check(self, optimizer: torch.optim.Optimizer, *, is_flat: bool, is_elementwise: bool) -> None:
        """Refuses what keeps its states in ways of its own."""
        super().check(optimizer, is_flat=is_flat, is_elementwise=is_elementwise)
        if isinstance(optimizer, PacksStates):
            raise ConfigError(
                "zero_optimization.offload_optimizer.device nvme keeps states as they are computed with, and "
                f"{type(optimizer).__name__} packs them into bytes; set optimizer.params.state_bits to 32, or device "
                "to cpu"
            )
        if not is_flat or not isinstance(optimizer, StartsStates):
            raise ConfigError(
                f"zero_optimization.offload_optimizer.device nvme needs an optimizer made of the op table, not "
                f"{type(optimizer).__name__}; set optimizer.type to AdamW, Adagrad, Lion or SGD without keys that "
                "choose torch's own kernels, and install ds-accel-cpu, or set device to cpu"
            )

    # --- layout -------------------------------------------------------------------------------------------------

    def adopt(self, optimizer: torch.optim.Optimizer, pieces: Sequence[MasterPiece], space: UpdateSpace) -> None:
        """Takes room in the file, and writes masters and states for the first time."""
        super().adopt(optimizer, pieces, space)
        self._optimizer = optimizer
        stored = [piece for piece in pieces if piece.is_stored]
        counter = itertools.count()
        sizes: dict[str, int] = {}
        for piece in stored:
            number, fills = next(counter), self._fills(piece)
            dtypes = {MASTER: piece.master.dtype} if piece.separate else {}
            dtypes |= {key: fill.dtype for key, fill in fills.items()}
            names = {key: f"tile {number} ({_title(piece)}) {key or 'master'}" for key in dtypes}
            sizes |= {names[key]: piece.span.numel * dtype.itemsize for key, dtype in dtypes.items()}
            self._tiles[id(piece)] = _Tile(
                list(names.values()), dtypes, {key: fill.item() for key, fill in fills.items()}
            )
        self.store.reserve(sizes)
        largest = max((self.store.span_bytes(tile.names) for tile in self._tiles.values()), default=0)
        self.pool = self.store.buffer_pool(largest, torch.uint8)
        for piece in stored:
            self._detach(piece)
        self._write_first(stored)

    def _fills(self, piece: MasterPiece) -> dict[str, torch.Tensor]:
        """The states of a tile: one element of each as the optimizer makes it."""
        optimizer: Any = self._optimizer
        probe = torch.nn.Parameter(torch.empty(1, dtype=piece.master.dtype))
        states = optimizer.state_of(probe)
        del optimizer.state[probe]
        return {key: value for key, value in states.items() if value.shape == probe.shape}

    def _write_first(self, stored: list[MasterPiece]) -> None:
        def fill(pieces: Sequence[MasterPiece]) -> None:
            for piece in pieces:
                if piece.separate:
                    piece.master.data.copy_(piece.working)

        if not self._policy.fast_init:
            self.visit(stored, fill, fetch=False)
            return
        for piece in stored:
            if piece.separate:
                tile, buffer = self._tiles[id(piece)], self._take()
                try:
                    self._attach(piece, buffer)
                    fill([piece])
                    self._detach(piece)
                    self.store.put(tile.names[0], self._views(piece, buffer)[MASTER].view(torch.uint8)).wait()
                finally:
                    self.free(buffer)

    # --- moving -------------------------------------------------------------------------------------------------

    def visit(self, pieces: Sequence[MasterPiece], work: Work, *, fetch: bool = True, store: bool = True) -> None:
        """Pieces that are in memory first, then tile after tile; see `Placement.visit`."""
        self._hide()
        resident = [piece for piece in pieces if not piece.is_stored]
        if resident:
            work(resident)
        try:
            pipelined(
                [piece for piece in pieces if piece.is_stored],
                lambda piece: self._load(piece, fetch),
                lambda piece, buffer: self._work(piece, buffer, work),
                lambda piece, buffer: self._store(piece, buffer, store),
                read_ahead=self._policy.read_ahead and fetch,
                write_behind=self._policy.write_behind and store,
            )
        finally:
            for buffer in list(self._held):  # what a failure left
                self.free(buffer)

    def _load(self, piece: MasterPiece, fetch: bool) -> _Arrival:
        tile, buffer = self._tiles[id(piece)], self._take()
        if fetch and tile.is_begun:
            return _Arrival(buffer, self.store.get_adjacent(tile.names, buffer[: self.store.span_bytes(tile.names)]))
        views = self._views(piece, buffer)
        for key, view in views.items():
            if key != MASTER:
                view.fill_(tile.fills[key])
        if fetch and MASTER in views:
            return _Arrival(buffer, self.store.get(tile.names[0], views[MASTER].view(torch.uint8)))
        return _Arrival(buffer, None)

    def _work(self, piece: MasterPiece, buffer: torch.Tensor, work: Work) -> torch.Tensor:
        self._attach(piece, buffer)
        try:
            work([piece])
            self._collect(piece, buffer)
        finally:
            self._detach(piece)
        return buffer

    def _store(self, piece: MasterPiece, buffer: torch.Tensor, store: bool) -> _Departure:
        tile = self._tiles[id(piece)]
        if not store:
            return _Departure(self, buffer, None)
        tile.is_begun = True
        handle = self.store.put_adjacent(tile.names, buffer[: self.store.span_bytes(tile.names)])
        return _Departure(self, buffer, handle)

    # --- what the optimizer sees --------------------------------------------------------------------------------

    def _views(self, piece: MasterPiece, buffer: torch.Tensor) -> dict[str, torch.Tensor]:
        tile = self._tiles[id(piece)]
        parts = self.store.views(tile.names, buffer, torch.uint8)
        return {key: part.view(dtype) for (key, dtype), part in zip(tile.dtypes.items(), parts, strict=True)}

    def _attach(self, piece: MasterPiece, buffer: torch.Tensor) -> None:
        assert self._optimizer is not None
        state = self._optimizer.state[piece.master]
        for key, view in self._views(piece, buffer).items():
            if key == MASTER:
                show(piece.master, view)
            else:
                state[key] = view

    def _collect(self, piece: MasterPiece, buffer: torch.Tensor) -> None:
        """Brings states that `work` replaced by tensors of its own into the tile."""
        assert self._optimizer is not None
        state = self._optimizer.state[piece.master]
        for key, view in self._views(piece, buffer).items():
            found = piece.master.data if key == MASTER else state.get(key)
            if found is None:
                view.zero_()
            elif not is_same_memory(found, view):
                view.copy_(found.view(-1))

    def _detach(self, piece: MasterPiece) -> None:
        assert self._optimizer is not None
        state = self._optimizer.state[piece.master]
        for key, dtype in self._tiles[id(piece)].dtypes.items():
            nothing = placeholder((piece.span.numel,), dtype, piece.master.device)
            if key == MASTER:
                show(piece.master, nothing)
            else:
                state[key] = nothing

    # --- reading without a visit --------------------------------------------------------------------------------

    def deferred(self, piece: MasterPiece) -> dict[str, Deferred] | None:
        """Reads the tile of `piece` into a buffer when a tensor of it is first asked for after another piece's."""
        if not piece.is_stored:
            return None

        def loader(key: str) -> Deferred:
            def load(start: int, stop: int) -> torch.Tensor:
                return self._views(piece, self._show(piece))[key][start:stop]

            return Deferred(self._tiles[id(piece)].dtypes[key], load)

        found = {key: loader(key) for key in self._tiles[id(piece)].dtypes}
        if MASTER not in found and piece.is_finer:
            raise AssertionError("a finer master is always stored")
        return found

    def _show(self, piece: MasterPiece) -> torch.Tensor:
        if self._shown is None or self._shown[0] != id(piece):
            self._hide()
            buffer = self._load(piece, fetch=True).wait()
            self._shown = (id(piece), buffer)
        return self._shown[1]

    def _hide(self) -> None:
        if self._shown is not None:
            _, buffer = self._shown
            self._shown = None
            self.free(buffer)

    # --- buffers ------------------------------------------------------------------------------------------------

    def _take(self) -> torch.Tensor:
        assert self.pool is not None
        buffer = self.pool.acquire()
        self._held.append(buffer)
        return buffer

    def free(self, buffer: torch.Tensor) -> None:
        """Gives a buffer back to the pool; any number of times."""
        assert self.pool is not None
        if any(held is buffer for held in self._held):
            self._held = [held for held in self._held if held is not buffer]
            self.pool.release(buffer)

    def close(self) -> None:
        """Removes the file."""
        super().close()
        self.store.close()
        self._io.close()
        self._tiles.clear()


def _title(piece: MasterPiece) -> str:
    """What messages call a piece."""
    names = [slot.name for _, slot, _ in piece.fragments()]
    return f"{names[0]} to {names[-1]}" if names else "padding"
