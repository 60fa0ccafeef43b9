"""Weights: builds the update space, keeps parameters equal over ranks, and saves them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_core.errors import CheckpointError, ModelError, listed
from ds_core.flat import Logical
from ds_core.holdings import Holding, Replicas
from ds_core.layout import Range
from ds_core.parameters import persistent_buffers
from ds_core.part import Part, Update
from ds_core.space import ReplicatedSpace, UpdateSpace
from ds_core.state import Deferred, Fragment, StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.flat import FlatGroup

__all__ = ["Weights"]

MODEL = "model/"

logger = logging.getLogger(__name__)


class Weights(Part):
    """Owns the module's parameters and buffers on behalf of the engine."""

    name = "weights"
    after = ("precision",)
    state_kind = "module"

    def __init__(self) -> None:
        self._module: torch.nn.Module | None = None
        self._space: UpdateSpace | None = None
        self._batch: Replicas | None = None
        self._holdings: Mapping[str, Holding] = {}
        """By each name of a parameter that is not like those all ranks of the batch hold."""
        self._elsewhere: Collection[str] = ()
        self._strays: list[torch.nn.Parameter] = []
        """Parameters that get gradients although no optimizer group holds them."""

    def prepare(self, build: Build) -> None:
        """Makes the replicated space unless a part before this one made another; starts all ranks equal.

        Raises:
            ModelError: the model is divided, and some rank has nothing to train.
        """
        self._module, self._elsewhere = build.module, build.elsewhere
        named = build.module.named_parameters(remove_duplicate=False)
        self._holdings = {name: build.holdings[p] for name, p in named if p in build.holdings}
        members = build.parameters
        _check_all_train(build, bool(members))
        if build.space is None and members:
            build.space = ReplicatedSpace(members, **build.space_arguments())  # fills and broadcasts the trained ones
        self._space = build.space
        held = {id(member.parameter) for member in members}
        self._strays = [p for p in build.module.parameters() if p.requires_grad and id(p) not in held]
        self._batch = build.mesh.replicas(*build.mesh.batch_axes)
        with comm.scope("initial parameters"), torch.no_grad():
            for name, tensor in _untrained(build.module, self._space).items():
                holders = self._holders(name)
                if holders.ranks > 1:
                    comm.broadcast(tensor, src=holders.members[0], group=holders.group)

    def _holders(self, name: str) -> Replicas:
        """Ranks that hold the same values of a parameter or buffer."""
        assert self._batch is not None
        holding = self._holdings.get(name)
        return self._batch if holding is None else holding.replicas

    def _logical(self, name: str, tensor: torch.Tensor) -> Logical:
        """What a checkpoint knows it as."""
        holding = self._holdings.get(name)
        if holding is None or holding.shape is None:
            return Logical(tuple(tensor.shape))
        return Logical(holding.shape, holding.start)

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
        """Trainable parameters by shards; frozen parameters and buffers by the first rank that holds them."""
        plan = StatePlan()
        assert self._module is not None
        assert self._batch is not None
        for flat in self._space.groups if self._space is not None else ():
            assert self._space is not None
            for index, part in flat.layout.fragments(self._space.measured(flat)):
                key, shape, bounds = (
                    f"model/{flat.layout.slots[index].name}",
                    flat.logical(index).shape,
                    flat.bounds(index, part),
                )
                plan.fragments.append(Fragment(key, shape, bounds.start, bounds.stop, _values(flat, part)))
        for name, tensor in _untrained(self._module, self._space).items():
            if self._holders(name).rank == 0:
                values, logical = tensor.detach().reshape(-1), self._logical(name, tensor)
                stop = logical.start + values.numel()
                plan.fragments.append(Fragment(f"model/{name}", logical.shape, logical.start, stop, values))
        plan.values["module"] = _names(self._module)
        return plan

    def check_state(self, reader: StateReader) -> None:
        """Refuses other names and other shapes.

        Raises:
            CheckpointError: a tensor is missing, has another shape, or belongs to nothing here.
        """
        tensors = self._tensors()
        known = set(reader.keys())
        missing = [name for name in tensors if MODEL + name not in known]
        refused = [name for name in missing if not reader.may_lack(name)]
        if refused:
            raise CheckpointError(self._missing(refused, len(tensors), reader.unclaimed))
        surplus = [name for name in reader.unclaimed if name not in self._elsewhere and not reader.may_have(name)]
        if surplus:
            raise CheckpointError(
                f"the checkpoint has {_count(surplus)} that this model has not: "
                f"{listed(surplus, missing, 'the model')}; pass rename= where they have other names here, or "
                "unexpected= with the names to leave out"
            )
        shapes = {name: reader.shape(MODEL + name) for name in tensors if MODEL + name in known}
        here = {name: self._logical(name, tensors[name]).shape for name in shapes}
        wrong = [name for name, shape in shapes.items() if shape != here[name]]
        if wrong:
            first = f"{wrong[0]!r} has shape {here[wrong[0]]} here and {shapes[wrong[0]]}"
            rest = f"; shapes also differ of {listed(wrong[1:])}" if wrong[1:] else ""
            raise CheckpointError(f"{first} in the checkpoint{rest}")

    def _missing(self, names: list[str], count: int, unclaimed: Sequence[str]) -> str:
        assert self._module is not None
        frozen = {name for name, parameter in self._module.named_parameters() if not parameter.requires_grad}
        text = f"the checkpoint lacks {len(names)} of the model's {count} parameters and buffers: "
        text += listed(names, unclaimed, "the checkpoint")
        if frozen.issuperset(names):
            return (
                f"{text}; all of them are frozen, and a checkpoint saved with exclude_frozen_parameters has none of "
                'those: load their weights into the model first, and pass missing="frozen" to keep them'
            )
        return f"{text}; pass rename= where they have other names there, or missing= with the names to keep as they are"

    def load_state(self, reader: StateReader) -> None:
        """Reads every parameter and buffer of the module that the checkpoint has."""
        self.zero_grad()
        tensors, known = self._tensors(), set(reader.keys())
        groups = self._space.groups if self._space is not None else []
        mine = {slot.name for flat in groups for slot in flat.layout.slots}
        kept = [name for name in tensors if MODEL + name not in known]
        if kept:
            logger.info("%d tensors are not in the checkpoint and stay as they are: %s", len(kept), ", ".join(kept))
        with torch.no_grad():
            for flat in groups:
                for index, part in flat.layout.fragments(flat.values.held()):
                    slot = flat.layout.slots[index]
                    if MODEL + slot.name in known:
                        values = flat.working(part)
                        reader.read(_best(reader, known, slot.name, flat.dtype), values, flat.bounds(index, part).start)
                        flat.store(part, values)
            for name, tensor in tensors.items():
                if name not in mine and MODEL + name in known:
                    _read(reader, MODEL + name, tensor, self._logical(name, tensor).start)

    def state_loaded(self) -> None:
        """Shares what is whole on all ranks and was read in parts."""
        if self._space is not None:
            self._space.publish_all()

    def _tensors(self) -> dict[str, torch.Tensor]:
        """All parameters and persistent buffers that have elements."""
        assert self._module is not None
        tensors = dict(self._module.named_parameters()) | _untrained(self._module, self._space)
        return {name: tensor for name, tensor in tensors.items() if tensor.numel()}

    def close(self) -> None:
        """Removes gradient hooks and frees buffers."""
        if self._space is not None:
            self._space.close()


def _check_all_train(build: Build, trains: bool) -> None:
    """Ranks that divide a model go through its gradients together. Called on all ranks.

    Raises:
        ModelError: on all of them, where some hold nothing to train, and others do.
    """
    if build.mesh.size(*build.mesh.model_axes) == 1:
        return
    everyone = comm.gather_json(trains)
    idle = [rank for rank, trains in enumerate(everyone) if not trains]
    if idle and len(idle) < len(everyone):
        raise ModelError(
            f"ranks {idle} ({build.mesh.plan.coords(idle[0])} the first) hold no parameter that is trained, while "
            "others do; divide the model so that every rank has one (pipeline.partition), or over fewer ranks"
        )


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


def _best(reader: StateReader, known: Set[str], name: str, dtype: torch.dtype) -> str:
    """The tensor to read working values from: the master where those saved were rounded to another dtype than ours."""
    master = f"optimizer/master/{name}"
    if master in known and reader.dtype(MODEL + name) != dtype and reader.shape(master) == reader.shape(MODEL + name):
        return master
    return MODEL + name


def _read(reader: StateReader, key: str, tensor: torch.Tensor, start: int = 0) -> None:
    if tensor.is_contiguous():
        reader.read(key, tensor.data.view(-1), start)
        return
    values = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    reader.read(key, values, start)
    tensor.data.copy_(values.view(tensor.shape))


def _count(names: Sequence[str]) -> str:
    return "a parameter or buffer" if len(names) == 1 else f"{len(names)} parameters and buffers"


def _untrained(module: torch.nn.Module, space: UpdateSpace | None) -> dict[str, torch.Tensor]:
    """Parameters the space does not keep, and persistent buffers, by name."""
    trained = {id(p) for flat in space.groups for p in flat.parameters} if space is not None else set()
    found: dict[str, torch.Tensor] = {n: p.data for n, p in module.named_parameters() if id(p) not in trained}
    return found | dict(persistent_buffers(module))
