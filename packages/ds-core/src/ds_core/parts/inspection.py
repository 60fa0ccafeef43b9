"""Inspection: this rank's part of every parameter's master, gradient and optimizer state, to read and to write.

`ds_core.fragments` makes full values of these parts; here nothing is communicated.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ds_core.errors import EngineError, ModelError
from ds_core.flat import FlatGroup
from ds_core.layout import Range, Slot, intersect
from ds_core.masters import MasterPiece
from ds_core.optim.lazy import start_states
from ds_core.part import Part

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.parts.accumulation import Accumulation
    from ds_core.parts.loss_scale import LossScale
    from ds_core.parts.optimizer import OptimizerStep
    from ds_core.parts.reduction import Reduction
    from ds_core.parts.residence import Residence
    from ds_core.space import UpdateSpace

__all__ = ["Inspection", "Spot", "StatePart", "inspection_of"]

_ENGINES: Any = WeakIdKeyDictionary()
"""A weak reference to the inspection of each parameter's engine."""


def inspection_of(parameter: Any) -> Inspection:
    """Of the engine that trains `parameter`, or keeps it frozen.

    Raises:
        ModelError: no engine does.
    """
    reference = _ENGINES.get(parameter) if isinstance(parameter, torch.Tensor) else None
    found: Inspection | None = reference() if reference is not None else None
    if found is None:
        what = f"shape {tuple(parameter.shape)}" if isinstance(parameter, torch.Tensor) else type(parameter).__name__
        raise ModelError(
            f"the parameter ({what}) belongs to no engine; pass a parameter of a module that ds_core.initialize took "
            "and whose engine was not destroyed"
        )
    return found


class Spot(NamedTuple):
    """Where a parameter lies: its flat group, its place and slot there, and its bucket's index."""

    flat: FlatGroup
    place: int
    slot: Slot
    bucket: int


class StatePart(NamedTuple):
    """A state on this rank: its values, 1-D; or, of a state with a shape of its own, all of it as it is."""

    values: torch.Tensor
    is_elementwise: bool = True


class Inspection(Part):
    """Knows each parameter's place in the space and in the optimizer."""

    name = "inspection"
    after = ("optimizer",)

    def __init__(
        self, reduction: Reduction, loss_scale: LossScale, optimizer: OptimizerStep, residence: Residence
    ) -> None:
        self.residence: Residence = residence
        self._reduction = reduction
        self._loss_scale = loss_scale
        self._optimizer = optimizer
        self._accumulation: Accumulation | None = None
        self._space: UpdateSpace | None = None
        self._module: torch.nn.Module | None = None
        self._pieces: dict[tuple[int, int], MasterPiece] = {}
        self._whole: dict[int, bool] = {}
        """For each flat group, whether every rank updates all of it."""

    def prepare(self, build: Build) -> None:
        """Notes where every parameter is."""
        self._space = build.space
        self._module = build.module
        self._accumulation = build.accumulation
        self._pieces = {
            (id(piece.flat), index): piece for piece in self._optimizer.pieces for index, _, _ in piece.fragments()
        }
        groups = build.space.groups if build.space is not None else []
        self._whole = {id(flat): build.space.owned(flat) == flat.layout.whole() for flat in groups if build.space}
        for parameter in build.module.parameters():
            _ENGINES[parameter] = weakref.ref(self)

    def close(self) -> None:
        """Forgets the parameters."""
        for parameter in self._module.parameters() if self._module is not None else ():
            reference = _ENGINES.get(parameter)
            if reference is not None and reference() is self:
                del _ENGINES[parameter]
        self._pieces = {}

    # --- places -------------------------------------------------------------------------------------------------

    @property
    def space(self) -> UpdateSpace:
        """The update space; there is one where a `Spot` was found."""
        assert self._space is not None
        return self._space

    def spot(self, parameter: torch.nn.Parameter) -> Spot | None:
        """Where `parameter` lies; None when the space does not keep it, so that it is whole on every rank."""
        place = self._space.places.get(id(parameter)) if self._space is not None else None
        if place is None:
            return None
        flat, index = place
        slot = flat.layout.slots[index]
        return Spot(flat, index, slot, flat.layout.bucket_at(slot.start) if slot.numel else 0)

    def is_whole(self, spot: Spot) -> bool:
        """Whether this rank updates all of it, as every rank does then."""
        return self._whole[id(spot.flat)]

    def share(self, spot: Spot, rank: int) -> Range | None:
        """The elements of the parameter that `rank` updates, in flat coordinates."""
        slot, layout = spot.slot, spot.flat.layout
        if not slot.numel:
            return None
        if self.is_whole(spot):
            return Range(slot.start, slot.stop)
        return intersect(layout.buckets[spot.bucket].shard(rank, layout.shards), slot.start, slot.stop)

    def own(self, spot: Spot) -> Range | None:
        """The elements this rank updates."""
        return self.share(spot, self.space.rank)

    def cut(self, spot: Spot, full: torch.Tensor) -> torch.Tensor:
        """This rank's part of a 1-D full value."""
        part = self.own(spot)
        return full[:0] if part is None else full[part.start - spot.slot.start : part.stop - spot.slot.start]

    # --- values -------------------------------------------------------------------------------------------------

    def master(self, spot: Spot) -> torch.Tensor:
        """What the optimizer updates on this rank, or the working values where no optimizer does; 1-D."""
        part, piece = self.own(spot), self._pieces.get((id(spot.flat), spot.place))
        if part is None:
            return torch.empty(0, dtype=spot.flat.dtype, device=spot.flat.device)
        return spot.flat.working(part) if piece is None else _cut(piece, piece.master.data, part)

    def set_master(self, spot: Spot, values: torch.Tensor) -> None:
        """Writes this rank's part of the master, and rounded into the working values."""
        part = self.own(spot)
        if part is not None:
            self.master(spot).copy_(values)
            spot.flat.working(part).copy_(values)

    def set_whole(self, spot: Spot, full: torch.Tensor) -> None:
        """Writes all working values, as far as they are whole on this rank just now."""
        data = spot.flat.parameters[spot.place].data
        # The stand-in of a sharded parameter has a single element of memory; a flat buffer never has so little.
        if data.untyped_storage().nbytes() > data.element_size():
            data.copy_(full.view(data.shape))

    # --- states -------------------------------------------------------------------------------------------------

    def has_states(self, spot: Spot) -> bool:
        """Whether an optimizer updates it."""
        return self._optimizer.optimizer is not None and not spot.flat.is_frozen

    def state(self, spot: Spot, key: str) -> StatePart | None:
        """This rank's part of a state; made if it is not there yet.

        Returns:
            None where the optimizer cannot make its states before its first step; no values where this rank updates
            nothing of the parameter.

        Raises:
            ModelError: the optimizer keeps no such state.
        """
        optimizer, part = self._optimizer.optimizer, self.own(spot)
        assert optimizer is not None
        piece = self._pieces.get((id(spot.flat), spot.place))
        if part is None or piece is None:
            return StatePart(torch.empty(0, dtype=torch.float32, device=spot.flat.device))
        if not start_states(optimizer, piece.master):
            return None
        found = {
            name: value
            for name, value in optimizer.state[piece.master].items()
            if isinstance(value, torch.Tensor) and (value.dim() or not piece.master.dim())
        }
        value = found.get(key)
        if value is not None and value.shape == piece.master.shape:
            return StatePart(_cut(piece, value, part))
        if value is not None and self.is_whole(spot):
            return StatePart(value, is_elementwise=False)
        reason = "" if value is None else " that can be put together from shards"
        listed = ", ".join(name for name, other in found.items() if other.shape == piece.master.shape)
        raise ModelError(
            f"{type(optimizer).__name__} keeps no state {key!r}{reason} for {spot.slot.name!r}; there are: {listed}"
        )

    # --- gradients ----------------------------------------------------------------------------------------------

    @property
    def grad_factor(self) -> float:
        """What a sum over ranks is multiplied by to be the averaged, unscaled gradient."""
        return self.space.factors[1] / self._loss_scale.scaler.scale

    def has_gradients(self, spot: Spot) -> bool:
        """Whether there was a backward since the last step; the same on all ranks."""
        return self.space.exchange.is_pending or spot.flat.gradients.is_reduced(spot.bucket)

    def reduced(self, spot: Spot) -> torch.Tensor:
        """This rank's part of the reduced gradient, 1-D, to read and write."""
        part = self.own(spot)
        assert part is not None
        return spot.flat.grads(part)

    def set_reduced(self, spot: Spot, values: torch.Tensor, *, doing: str) -> None:
        """Makes `values` this rank's part of the averaged, unscaled gradient that the step uses.

        Raises:
            ModelError: they are finite, but not in the dtype gradients are kept in, with the loss scale.
        """
        stored = (values / self.grad_factor).to(spot.flat.grad_dtype)
        if bool(values.isfinite().all()) and not bool(stored.isfinite().all()):
            raise ModelError(
                f"{doing}: values for {spot.slot.name!r} up to {float(values.abs().max()):g} do not fit "
                f"{spot.flat.grad_dtype} with the loss scale {self._loss_scale.scaler.scale:g}; pass smaller ones, or "
                "set data_types.grad_accum_dtype to fp32"
            )
        spot.flat.gradients.used[spot.place] = True
        if self.own(spot) is not None:
            self.reduced(spot).copy_(self.cut(spot, stored) if stored.numel() == spot.slot.numel else stored)

    def reduce(self, *, doing: str) -> None:
        """Brings gradients of all ranks together, as the step would. Called on all ranks.

        Raises:
            EngineError: more micro-batches will add to the gradients of this step, or there was no backward.
        """
        accumulation = self._accumulation
        assert accumulation is not None
        if not accumulation.is_boundary():
            raise EngineError(
                f"{doing} was called after micro-batch {accumulation.taken + 1} of {accumulation.steps} of a step, and "
                "later ones would add to what it sets; call it after the last backward of the step"
            )
        self._reduction.reduce_gradients()


def _cut(piece: MasterPiece, tensor: torch.Tensor, part: Range) -> torch.Tensor:
    """The elements `part` of a tensor shaped like the piece, 1-D."""
    return tensor.view(-1)[part.start - piece.span.start : part.stop - piece.span.start]
