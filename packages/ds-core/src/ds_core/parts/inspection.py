"""Inspection: this rank's part of every parameter's master, gradient and optimizer state, to read and to write.

`ds_core.fragments` makes full values of these parts; here nothing is communicated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.weak import WeakIdKeyDictionary

from ds_core.accelerator import Capability
from ds_core.errors import EngineError, ModelError
from ds_core.flat import FlatGroup
from ds_core.layout import Range, Slot, intersect
from ds_core.masters import MasterPiece
from ds_core.optim.lazy import PacksStates, start_states
from ds_core.part import Part
from ds_core.placeholder import is_placeholder

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
    """A copy of a state on this rank: its values, 1-D; or, of a state with a shape of its own, all of it."""

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
        self._has_storages: bool = True
        self._pieces: dict[tuple[int, int], list[tuple[MasterPiece, Range]]] = {}
        """For each parameter the pieces this rank updates of it, and which elements of it each has."""
        self._whole: dict[int, bool] = {}
        """For each flat group, whether every rank updates all of it."""

    def prepare(self, build: Build) -> None:
        """Notes where every parameter is."""
        self._space = build.space
        self._module = build.module
        self._has_storages = build.accelerator.has(Capability.STORAGE_ALIASING)
        self._accumulation = build.accumulation
        for piece in self._optimizer.pieces:
            for index, _, part in piece.fragments():
                self._pieces.setdefault((id(piece.flat), index), []).append((piece, part))
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
        return self.share(spot, spot.flat.replicas.rank)

    def cut(self, spot: Spot, full: torch.Tensor) -> torch.Tensor:
        """This rank's part of a 1-D full value."""
        part = self.own(spot)
        return full[:0] if part is None else full[part.start - spot.slot.start : part.stop - spot.slot.start]

    # --- values -------------------------------------------------------------------------------------------------

    def master(self, spot: Spot) -> torch.Tensor:
        """A copy of what the optimizer updates on this rank, or of working values where no optimizer does; 1-D."""
        own, pieces = self.own(spot), self._pieces.get((id(spot.flat), spot.place), [])
        if own is None:
            return self._empty(spot)
        if not pieces:
            return spot.flat.working(own).clone()
        found: dict[int, torch.Tensor] = {}

        def read(visited: Sequence[MasterPiece]) -> None:
            for piece in visited:
                found[id(piece)] = _cut(piece, piece.master.data, parts[id(piece)]).to(spot.flat.device, copy=True)

        parts = {id(piece): part for piece, part in pieces}
        self._optimizer.placement.visit([piece for piece, _ in pieces], read, store=False)
        return torch.cat([found[id(piece)] for piece, _ in pieces])

    def set_master(self, spot: Spot, values: torch.Tensor) -> None:
        """Writes this rank's part of the master, and rounded into the working values."""
        own, pieces = self.own(spot), self._pieces.get((id(spot.flat), spot.place), [])
        if own is None:
            return

        def write(visited: Sequence[MasterPiece]) -> None:
            for piece in visited:
                part = parts[id(piece)]
                _cut(piece, piece.master.data, part).copy_(values[part.start - own.start : part.stop - own.start])

        parts = {id(piece): part for piece, part in pieces}
        if pieces:
            self._optimizer.placement.visit([piece for piece, _ in pieces], write)
        spot.flat.store(own, values)

    def _empty(self, spot: Spot) -> torch.Tensor:
        return torch.empty(0, dtype=torch.float32, device=spot.flat.device)

    def set_whole(self, spot: Spot, full: torch.Tensor) -> None:
        """Writes all working values, as far as they are whole on this rank just now."""
        data = spot.flat.parameters[spot.place].data
        if not self._has_storages:
            is_here = not is_placeholder(data)
        else:
            # The stand-in of a sharded parameter has a single element of memory; a flat buffer never has so little.
            is_here = data.untyped_storage().nbytes() > data.element_size()
        if is_here:
            data.copy_(full.view(data.shape))

    # --- states -------------------------------------------------------------------------------------------------

    def has_states(self, spot: Spot) -> bool:
        """Whether an optimizer updates it."""
        return self._optimizer.optimizer is not None and not spot.flat.is_frozen

    def state(self, spot: Spot, key: str) -> StatePart | None:
        """This rank's part of a state; what the first step would start from where that was not taken yet.

        Returns:
            None where the optimizer cannot make its states before its first step; no values where this rank updates
            nothing of the parameter.

        Raises:
            ModelError: the optimizer keeps no such state.
        """
        found: list[StatePart] = []

        def read(state: StatePart, part: Range) -> None:  # pieces may be on several devices, and in memory only here
            found.append(state._replace(values=state.values.to(spot.flat.device, copy=True)))

        if not self._visit_state(spot, key, read, store=False):
            return None
        if found and not found[0].is_elementwise:
            return found[0]
        return StatePart(torch.cat([state.values for state in found]) if found else self._empty(spot))

    def set_state(self, spot: Spot, key: str, values: torch.Tensor) -> None:
        """Writes this rank's part of a state that `state` has found."""
        own = self.own(spot)

        def write(state: StatePart, part: Range) -> None:
            assert own is not None
            cut = values[part.start - own.start : part.stop - own.start] if state.is_elementwise else values
            state.values.copy_(cut)

        self._visit_state(spot, key, write, store=True)

    def _visit_state(self, spot: Spot, key: str, work: Callable[[StatePart, Range], None], *, store: bool) -> bool:
        """Calls `work` with each piece of a state and its range; False where there are none yet."""
        optimizer, pieces = self._optimizer.optimizer, self._pieces.get((id(spot.flat), spot.place), [])
        assert optimizer is not None
        parts = {id(piece): part for piece, part in pieces}
        answers: list[bool] = []
        errors: list[ModelError] = []

        def visit(visited: Sequence[MasterPiece]) -> None:
            for piece in visited:
                answers.append(start_states(optimizer, piece.master))
                if answers[-1]:
                    try:
                        state = self._pick(spot, piece, key, parts[id(piece)])
                        work(state, parts[id(piece)])
                        if store and isinstance(optimizer, PacksStates):
                            first = parts[id(piece)].start - piece.span.start
                            optimizer.pack(piece.master, key, first, state.values)
                    except ModelError as error:
                        errors.append(error)

        if pieces:
            self._optimizer.placement.visit([piece for piece, _ in pieces], visit, store=store)
        if errors:
            raise errors[0]
        return all(answers)

    def _pick(self, spot: Spot, piece: MasterPiece, key: str, part: Range) -> StatePart:
        """A state of a piece that is in memory, to read and write."""
        optimizer = self._optimizer.optimizer
        assert optimizer is not None
        if isinstance(optimizer, PacksStates) and key in optimizer.packed(piece.master):
            first = part.start - piece.span.start
            return StatePart(optimizer.unpack(piece.master, key, first, first + part.numel))
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
        return self._empty(spot) if part is None else spot.flat.grads(part)

    def stored(self, spot: Spot, values: torch.Tensor, *, doing: str) -> torch.Tensor:
        """Averaged, unscaled gradients as they are kept until the step.

        Raises:
            ModelError: they are finite, but not in the dtype gradients are kept in, with the loss scale.
        """
        kept = (values / self.grad_factor).to(spot.flat.grad_dtype)
        if bool(values.isfinite().all()) and not bool(kept.isfinite().all()):
            raise ModelError(
                f"{doing}: values for {spot.slot.name!r} up to {float(values.abs().max()):g} do not fit "
                f"{spot.flat.grad_dtype} with the loss scale {self._loss_scale.scaler.scale:g}; pass smaller ones, or "
                "set data_types.grad_accum_dtype to fp32"
            )
        return kept

    def set_reduced(self, spot: Spot, stored: torch.Tensor) -> None:
        """Makes this rank's part of what `stored` gave, 1-D, the gradient that the step uses."""
        spot.flat.gradients.used[spot.place] = True
        self.reduced(spot).copy_(stored)

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
