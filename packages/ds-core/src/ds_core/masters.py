"""Master pieces: what the optimizer sees of the update space on this rank.

Note [Two shapes of pieces]
    An optimizer that can update flat runs (`ds_core.optim.op_adam.OpAdam` and its kin, which have ``step_flat``) gets
    one 1-D piece per owned range. Any other optimizer gets a piece per parameter: the parameter itself where nothing
    is sharded and no finer copy is kept, so that a caller's optimizer stays exactly what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from ds_core.flat import FlatGroup
from ds_core.layout import ALIGNMENT_NUMEL, Range, Slot
from ds_core.placeholder import placeholder
from ds_core.placement import Home, Placement
from ds_core.space import UpdateSpace

__all__ = ["MasterPiece", "Run", "flat_pieces", "parameter_pieces"]


class Run(NamedTuple):
    """Consecutive elements of a piece that share a step count: range in flat coordinates, and the step."""

    start: int
    stop: int
    step: int


@dataclass(slots=True)
class MasterPiece:
    """A tensor the optimizer updates, and the range of a flat group it stands for.

    Attributes:
        flat: the group.
        span: range in flat coordinates.
        master: 1-D, or shaped like the parameter when it is whole.
        separate: `master` is a copy, in another dtype or memory, that has to be put back into the working values.
        slot_index: the parameter it belongs to, or None for a flat run over several.
        is_near: the working values are in memory on the device of `master`, so that an update can write them itself.
        is_stored: `master`, where it is separate, and the states are in memory only inside of `Placement.visit`.
    """

    flat: FlatGroup
    span: Range
    master: torch.nn.Parameter
    separate: bool
    slot_index: int | None = None
    is_near: bool = True
    is_stored: bool = False
    _fragments: tuple[tuple[int, Slot, Range], ...] = field(init=False, repr=False)
    _whole: list[Run] = field(init=False, repr=False)
    """The runs when every parameter is used and all count the same step, with step 0."""

    def __post_init__(self) -> None:
        """Plans once what every step asks for."""
        slots = self.flat.layout.slots
        self._fragments = tuple((i, slots[i], part) for i, part in self.flat.layout.fragments((self.span,)))
        self._whole = self._cut([0] * len(slots), [True] * len(slots))

    @property
    def working(self) -> torch.Tensor:
        """The working values of the span, 1-D."""
        return self.flat.working(self.span)

    @property
    def is_finer(self) -> bool:
        """Whether the master has more than the working values say."""
        return self.separate and self.master.dtype != self.flat.dtype

    def fragments(self) -> tuple[tuple[int, Slot, Range], ...]:
        """(slot index, slot, range in flat coordinates) of every parameter in the piece."""
        return self._fragments

    def runs(self, steps: Sequence[int], used: Sequence[bool]) -> list[Run]:
        """The piece cut where a parameter is unused or counts another step; neighbours with one count are joined.

        The padding between neighbours is zero and stays zero under an update.
        """
        if all(used) and len(set(steps)) == 1:
            return [run._replace(step=steps[0]) for run in self._whole]
        return self._cut(steps, used)

    def _cut(self, steps: Sequence[int], used: Sequence[bool]) -> list[Run]:
        runs: list[Run] = []
        for index, _, part in self._fragments:
            if not used[index]:
                continue
            is_next = bool(runs) and part.start - runs[-1].stop < ALIGNMENT_NUMEL
            if is_next and runs[-1].step == steps[index]:
                runs[-1] = Run(runs[-1].start, part.stop, steps[index])
            else:
                runs.append(Run(part.start, part.stop, steps[index]))
        return runs


def flat_pieces(
    space: UpdateSpace, master_dtype: torch.dtype | None, placement: Placement | None = None
) -> list[MasterPiece]:
    """One piece per home; a copy where dtype or memory of master and working values differ.

    The copy of a piece that is stored has no values yet; `Placement.adopt` takes them.
    """
    placement = placement or Placement()
    pieces = []
    for flat in space.flats:
        for home in placement.homes(space, flat):
            values, separate, is_near = _place(flat, home, master_dtype, placement)
            master = torch.nn.Parameter(values, requires_grad=True)
            piece = MasterPiece(flat, home.span, master, separate, is_near=is_near, is_stored=home.is_stored)
            pieces.append(piece)
    return pieces


def parameter_pieces(
    space: UpdateSpace, master_dtype: torch.dtype | None, placement: Placement | None = None
) -> list[MasterPiece]:
    """One piece per parameter and home; the parameter itself where it is whole and needs no copy."""
    placement = placement or Placement()
    pieces = []
    for flat in space.flats:
        for home in placement.homes(space, flat):
            for index, part in flat.layout.fragments((home.span,)):
                slot, parameter = flat.layout.slots[index], flat.parameters[index]
                whole = part.numel == slot.numel
                values, separate, is_near = _place(flat, home._replace(span=part), master_dtype, placement)
                # A sharded parameter is a stand-in, even where this rank's shard has all of it.
                if whole and not separate and flat.values.is_shown(index):
                    master = parameter
                else:
                    master = torch.nn.Parameter(values.view(slot.shape) if whole else values, requires_grad=True)
                pieces.append(MasterPiece(flat, part, master, separate, index, is_near))
    return pieces


def _place(
    flat: FlatGroup, home: Home, master_dtype: torch.dtype | None, placement: Placement
) -> tuple[torch.Tensor, bool, bool]:
    """The master's values, whether they are a copy, and whether the working values are beside them."""
    device, dtype = home.device or flat.device, master_dtype or flat.dtype
    is_near = flat.values.home(home.span) == device
    separate = dtype != flat.dtype or not is_near
    if not separate:
        return flat.working(home.span), separate, is_near
    if home.is_stored:
        return placeholder((home.span.numel,), dtype, device), separate, is_near
    values = placement.empty(home.span.numel, dtype, device)
    return values.copy_(flat.working(home.span)), separate, is_near
