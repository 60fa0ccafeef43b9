"""Takes optimizer state back from a checkpoint, into whatever pieces this rank has of it.

Note [Nothing twice]
    States are read in place. Where there are none yet, or others than the checkpoint's, they are given up and made as
    the optimizer's first step would make them. So a load needs the memory of the states, and a buffer where they are
    packed or cast.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ds_core.errors import CheckpointError, listed
from ds_core.layout import Range, Slot
from ds_core.masters import MasterPiece
from ds_core.optim.family import check_family, hyperparameters
from ds_core.optim.lazy import PacksStates, start_states
from ds_core.parts.optimizer_state import MASTER
from ds_core.placement import Placement
from ds_core.space import UpdateSpace
from ds_core.state import StateReader

__all__ = ["check_optimizer", "load_optimizer", "refine"]

BUFFER_NUMEL = 1 << 20
"""Elements that are read at a time where they cannot be read in place."""

PACKED_NUMEL = 1 << 16
"""Elements that are packed at a time, which takes some 50 bytes each."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """What a checkpoint has of an optimizer.

    Attributes:
        reader: the checkpoint.
        states: names of the states of each parameter, the master among them.
        scalars: of each parameter: its number of updates as ``taken``, and what its state has besides tensors.
        keys: all logical tensors.
        type: of the optimizer; None where it is not known.
    """

    reader: StateReader
    states: dict[str, list[str]]
    scalars: Mapping[str, Mapping[str, Any]]
    keys: frozenset[str]
    type: str | None

    def knows(self, name: str) -> bool:
        """Whether the saved optimizer had this parameter."""
        return name in self.scalars or name in self.states

    def knows_all(self, piece: MasterPiece) -> bool:
        """Whether it had all parameters of a piece."""
        return all(self.knows(slot.name) for _, slot, _ in piece.fragments())

    def states_of(self, piece: MasterPiece) -> list[str]:
        """States of any parameter of a piece, without the master."""
        return sorted(
            {state for _, slot, _ in piece.fragments() for state in self.states.get(slot.name, ())} - {MASTER}
        )

    def shape(self, state: str, name: str) -> tuple[int, ...]:
        """Of a state of a parameter."""
        return self.reader.shape(f"optimizer/{state}/{name}")


def _saved(reader: StateReader) -> _Saved:
    states: dict[str, list[str]] = {}
    keys = frozenset(reader.keys())
    for key in keys:
        if key.startswith("optimizer/"):
            _, state, name = key.split("/", 2)
            states.setdefault(name, []).append(state)
    saved = reader.value("optimizer")
    scalars = reader.value("optimizer_scalars") or {}
    return _Saved(reader, states, scalars, keys, saved["type"] if saved else None)


def check_optimizer(
    optimizer: torch.optim.Optimizer, space: UpdateSpace, reader: StateReader, elsewhere: Collection[str] = ()
) -> None:
    """Refuses what `load_optimizer` could not take.

    Args:
        optimizer: that would take it.
        space: its parameters.
        reader: the checkpoint.
        elsewhere: names of what other ranks train.

    Raises:
        CheckpointError: no optimizer state, of another type, or of other parameters or shapes.
    """
    found = reader.value("optimizer")
    if found is None:
        raise CheckpointError(
            "the checkpoint holds no optimizer state; pass load_module_only=True to take its weights, or "
            "load_optimizer_states=False to take all else it has"
        )
    check_family(found, optimizer)
    saved = _saved(reader)
    slots = {
        slot.name: flat.logical(index).shape
        for flat in space.flats
        for index, slot in enumerate(flat.layout.slots)
        if slot.numel
    }
    missing = [name for name in slots if not saved.knows(name) and not reader.may_lack(name)]
    if missing:
        raise CheckpointError(
            f"the checkpoint has no optimizer state of {listed(missing, reader.unclaimed, 'the checkpoint')}: not "
            "trained when it was saved; pass missing= with the names that start anew, or load_optimizer_states=False"
        )
    known = dict.fromkeys([*saved.scalars, *saved.states])
    surplus = [name for name in known if name not in slots and name not in elsewhere and not reader.may_have(name)]
    if surplus:
        raise CheckpointError(
            f"the checkpoint has optimizer state of {listed(surplus)}, which this engine does not train; pass "
            "unexpected= with the names to leave out, or load_optimizer_states=False"
        )
    for name, expected in slots.items():
        for state in saved.states.get(name, ()):
            shape = saved.shape(state, name)
            if shape != expected and (state == MASTER or space.is_sharded):
                raise CheckpointError(f"{state!r} of {name!r} has shape {shape} in the checkpoint, {expected} here")


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    pieces: list[MasterPiece],
    steps: dict[int, list[int]],
    reader: StateReader,
    placement: Placement,
) -> None:
    """Fills masters, states, step counts and hyperparameters; of this rank's pieces. The checkpoint was checked."""
    saved = _saved(reader)
    for group, values in zip(optimizer.param_groups, reader.value("optimizer")["groups"], strict=True):
        group.update(hyperparameters(values, group))

    def load(pieces: Sequence[MasterPiece]) -> None:
        for piece in pieces:  # all of them first, so that the allocator has no holes between what stays
            _start(saved, optimizer, piece)
        for piece in pieces:
            _load_master(saved, piece)
            _load_states(saved, optimizer, piece)
            _load_scalars(saved, optimizer, piece, steps[id(piece.flat)])

    placement.visit(pieces, load, fetch=not all(map(saved.knows_all, pieces)))


def _load_master(saved: _Saved, piece: MasterPiece) -> None:
    """The saved master, or the weight as it was saved, or what the working values say."""
    if not piece.separate:
        return
    values = piece.master.data.view(-1)
    if piece.is_stored:
        values.zero_()  # between parameters there is nothing to read
    for index, slot, part in piece.fragments():
        here = values[part.start - piece.span.start : part.stop - piece.span.start]
        key = _finest(saved.keys, slot.name)
        if key is None:
            here.copy_(piece.flat.working(part))
        else:
            saved.reader.read(key, here, piece.flat.bounds(index, part).start)


def _finest(keys: frozenset[str], name: str) -> str | None:
    found = (f"optimizer/{MASTER}/{name}", f"model/{name}")
    return next((key for key in found if key in keys), None)


def _start(saved: _Saved, optimizer: torch.optim.Optimizer, piece: MasterPiece) -> None:
    """Makes the states that will be read. See Note [Nothing twice]."""
    states = saved.states_of(piece)
    if saved.knows_all(piece) and not piece.is_stored and not _fits(saved, optimizer, piece, states):
        optimizer.state.pop(piece.master, None)
    if states:
        start_states(optimizer, piece.master)


def _load_states(saved: _Saved, optimizer: torch.optim.Optimizer, piece: MasterPiece) -> None:
    """Parameters the checkpoint does not know keep what they have."""
    for state in saved.states_of(piece):
        if isinstance(optimizer, PacksStates):
            _pack(saved, optimizer, piece, state)
        else:
            _read(saved, optimizer.state[piece.master], piece, state)


def _fits(saved: _Saved, optimizer: torch.optim.Optimizer, piece: MasterPiece, states: Sequence[str]) -> bool:
    """Whether what is there has exactly these states, and the checkpoint has all elements of all of them."""
    if isinstance(optimizer, PacksStates):
        own = set(optimizer.packed(piece.master))
    else:
        held = optimizer.state.get(piece.master, {})
        own = {key for key, value in held.items() if isinstance(value, torch.Tensor) and key != "step"}
    return own == set(states) and all(
        state in saved.states.get(slot.name, ()) and saved.shape(state, slot.name) == piece.flat.logical(index).shape
        for state in states
        for index, slot, _ in piece.fragments()
    )


def _read(saved: _Saved, own: dict[str, Any], piece: MasterPiece, state: str) -> None:
    for index, slot, part in piece.fragments():
        if not saved.knows(slot.name):
            continue
        has, first = state in saved.states.get(slot.name, ()), piece.flat.bounds(index, part).start
        if has and saved.shape(state, slot.name) != piece.flat.logical(index).shape:
            own[state] = _whole(saved, state, slot.name, own.get(state), piece.master.device)
            continue
        target = own.get(state)
        if target is None or target.shape != piece.master.shape:
            if not has:
                continue
            target = own[state] = torch.zeros_like(piece.master.data, memory_format=torch.contiguous_format)
        low, high = part.start - piece.span.start, part.stop - piece.span.start
        if has and target.is_contiguous():
            saved.reader.read(_key(state, slot), target.view(-1)[low:high], first)
        elif has:
            values = torch.empty(part.numel, dtype=target.dtype, device=target.device)
            saved.reader.read(_key(state, slot), values, first)
            target.copy_(values.view(target.shape))  # a piece of several parameters is 1-D, and contiguous


def _whole(saved: _Saved, state: str, name: str, like: Any, device: torch.device) -> torch.Tensor:
    """A state in a shape of its own."""
    key = f"optimizer/{state}/{name}"
    dtype = like.dtype if isinstance(like, torch.Tensor) else saved.reader.dtype(key)
    values = torch.empty(math.prod(saved.reader.shape(key)), dtype=dtype, device=device)
    saved.reader.read(key, values)
    return values.view(saved.reader.shape(key))


def _key(state: str, slot: Slot) -> str:
    return f"optimizer/{state}/{slot.name}"


def _pack(saved: _Saved, optimizer: Any, piece: MasterPiece, state: str) -> None:
    """A packed state, some whole blocks at a time."""
    size = max(1, PACKED_NUMEL // optimizer.block_size) * optimizer.block_size
    buffer = torch.empty(min(size, piece.span.numel), dtype=torch.float32, device=piece.master.device)
    for start in range(piece.span.start, piece.span.stop, size):
        stop = min(start + size, piece.span.stop)
        low = start - piece.span.start
        values = buffer[: stop - start].zero_()
        if not saved.knows_all(piece):
            values.copy_(optimizer.unpack(piece.master, state, low, low + values.numel()))
        for index, slot, part in piece.fragments():
            first, last = max(part.start, start), min(part.stop, stop)
            if first < last and state in saved.states.get(slot.name, ()):
                at = piece.flat.bounds(index, Range(first, last)).start
                saved.reader.read(_key(state, slot), values[first - start : last - start], at)
        optimizer.pack(piece.master, state, low, values)


def _load_scalars(saved: _Saved, optimizer: torch.optim.Optimizer, piece: MasterPiece, steps: list[int]) -> None:
    """Step counts, and what a state has besides tensors; a piece of several parameters counts its highest step."""
    found: dict[str, Any] = {}
    is_other = saved.type != type(optimizer).__name__
    for index, slot, _ in piece.fragments():
        if not saved.knows(slot.name):
            continue
        small = dict(saved.scalars.get(slot.name, {}))
        steps[index] = int(small.pop("taken", 0))
        if is_other and "step" in small:  # that of another kind of piece may be its neighbours'
            small["step"] = {"tensor": float(steps[index])}
        for name, value in small.items():
            number = value["tensor"] if isinstance(value, dict) else value
            if name == "step" and name in found:
                number = max(number, found[name][0])
            found[name] = (number, isinstance(value, dict))
    for name, (number, is_tensor) in found.items():
        own = optimizer.state[piece.master]
        held = own.get(name)
        if isinstance(held, torch.Tensor):
            held.fill_(number)
        else:
            own[name] = torch.tensor(number, dtype=torch.float32) if is_tensor else number


def refine(piece: MasterPiece, reader: StateReader) -> None:
    """Where a checkpoint knows values more finely that round to the working values, the master takes them."""
    keys = frozenset(reader.keys())
    for index, slot, part in piece.fragments():
        key = _finest(keys, slot.name)
        logical = piece.flat.logical(index)
        if key is None or reader.dtype(key) == piece.flat.dtype or reader.shape(key) != logical.shape:
            continue
        for start in range(part.start, part.stop, BUFFER_NUMEL):
            chunk = Range(start, min(start + BUFFER_NUMEL, part.stop))
            fine = torch.empty(chunk.numel, dtype=piece.master.dtype, device=piece.master.device)
            reader.read(key, fine, piece.flat.bounds(index, chunk).start)
            master = piece.master.data.view(-1)[chunk.start - piece.span.start : chunk.stop - piece.span.start]
            working = piece.flat.working(chunk).to(master.device)
            torch.where(fine.to(working.dtype) == working, fine, master, out=master)
