"""Weights: builds the update space, keeps parameters equal over ranks, and saves them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.errors import CheckpointError
from ds_core.layout import Range
from ds_core.part import Part, Update
from ds_core.space import ReplicatedSpace, UpdateSpace
from ds_core.state import Deferred, Fragment, StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.flat import FlatGroup

__all__ = ["Weights"]

logger = logging.getLogger(__name__)


class Weights(Part):
    """Owns the module's parameters and buffers on behalf of the engine."""

    name = "weights"
    after = ("precision",)
    state_kind = "module"

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._space: UpdateSpace | None = None
        self._strays: list[torch.nn.Parameter] = []
        """Parameters that get gradients although no optimizer group holds them."""

    def prepare(self, build: Build) -> None:
        """Makes the replicated space unless a part before this one made another; starts all ranks equal."""
        self._module = build.module
        members = build.parameters
        if build.space is None and members:
            build.space = ReplicatedSpace(members, **build.space_arguments())  # fills and broadcasts the trained ones
        self._space = build.space
        held = {id(member.parameter) for member in members}
        self._strays = [p for p in build.module.parameters() if p.requires_grad and id(p) not in held]
        group = build.mesh.group("data")
        if build.mesh.size("data") > 1:
            with comm.scope("initial parameters"), torch.no_grad():
                source = comm.get_global_rank(group, 0)
                for tensor in _untrained(build.module, self._space).values():
                    comm.broadcast(tensor, src=source, group=group)

    def after_update(self, update: Update) -> None:
        """Shares the updated parameters with every rank."""
        if self._space is not None and update.skip_reason is None:
            self._space.publish()

    def zero_grad(self) -> None:
        """Forgets accumulated gradients."""
        if self._space is not None:
            self._space.zero_grad()
        for parameter in self._strays:
            parameter.grad = None

    def state_plan(self) -> StatePlan:
        """Trainable parameters by shards; frozen parameters and buffers by the first rank."""
        plan = StatePlan()
        assert self._module is not None
        first = True
        if self._space is not None:
            first = self._space.rank == 0
            for flat in self._space.groups:
                for index, part in flat.layout.fragments(self._space.measured(flat)):
                    slot = flat.layout.slots[index]
                    bounds = (part.start - slot.start, part.stop - slot.start)
                    plan.fragments.append(Fragment(f"model/{slot.name}", slot.shape, *bounds, _values(flat, part)))
        if first:
            for name, tensor in _untrained(self._module, self._space).items():
                values = tensor.detach().reshape(-1)
                plan.fragments.append(Fragment(f"model/{name}", tuple(tensor.shape), 0, values.numel(), values))
            plan.values["module"] = _names(self._module)
        return plan

    def load_state(self, reader: StateReader) -> None:
        """Reads every parameter and buffer of the module.

        Raises:
            CheckpointError: a tensor is missing or has another shape.
        """
        assert self._module is not None
        tensors = dict(self._module.named_parameters()) | _untrained(self._module, self._space)
        known = set(reader.keys())
        tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel()}
        groups = self._space.groups if self._space is not None else []
        mine = {slot.name for flat in groups for slot in flat.layout.slots}
        missing = [name for name in tensors if f"model/{name}" not in known]
        if missing and not reader.strict:
            logger.warning("%d tensors are not in the checkpoint, first %r; they stay", len(missing), missing[0])
            tensors = {name: tensor for name, tensor in tensors.items() if name not in set(missing)}
        elif missing:
            raise CheckpointError(
                f"the checkpoint lacks {len(missing)} tensors of this model, first {missing[0]!r}; "
                "it was written by another model, or the module was renamed"
            )
        for name, tensor in tensors.items():
            saved = reader.shape(f"model/{name}")
            if saved != tuple(tensor.shape):
                raise CheckpointError(f"{name!r} has shape {tuple(tensor.shape)} here and {saved} in the checkpoint")
        with torch.no_grad():
            for flat in groups:
                for index, part in flat.layout.fragments(flat.values.held()):
                    slot = flat.layout.slots[index]
                    if slot.name in tensors:
                        values = flat.working(part)
                        reader.read(f"model/{slot.name}", values, part.start - slot.start)
                        flat.store(part, values)
            for name, tensor in tensors.items():
                if name in mine:
                    continue
                if tensor.is_contiguous():
                    reader.read(f"model/{name}", tensor.data.view(-1))
                else:
                    values = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
                    reader.read(f"model/{name}", values)
                    tensor.data.copy_(values.view(tensor.shape))
        if self._space is not None:
            self._space.publish()

    def close(self) -> None:
        """Removes gradient hooks and frees buffers."""
        if self._space is not None:
            self._space.close()


def _values(flat: FlatGroup, part: Range) -> torch.Tensor | Deferred:
    """The working values of `part`, read when they are written where they are not in memory."""
    if flat.values.home(part) is not None:
        return flat.working(part)
    return Deferred(flat.dtype, lambda start, stop: flat.working(Range(part.start + start, part.start + stop)))


def _names(module: torch.nn.Module) -> dict[str, Any]:
    """What names and shapes do not say: which parameters are frozen, and further names of those that have several."""
    first = {id(parameter): name for name, parameter in module.named_parameters()}
    named = module.named_parameters(remove_duplicate=False)
    return {
        "frozen": [name for name, parameter in module.named_parameters() if not parameter.requires_grad],
        "tied": {name: first[id(parameter)] for name, parameter in named if first[id(parameter)] != name},
    }


def _untrained(module: torch.nn.Module, space: UpdateSpace | None) -> dict[str, torch.Tensor]:
    """Parameters the space does not keep, and persistent buffers, by name."""
    trained = {id(p) for flat in space.groups for p in flat.parameters} if space is not None else set()
    found: dict[str, torch.Tensor] = {n: p.data for n, p in module.named_parameters() if id(p) not in trained}
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found
