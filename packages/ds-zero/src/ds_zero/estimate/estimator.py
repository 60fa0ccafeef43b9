"""`estimate`: bytes per rank by kind and bytes sent per step, from the layouts that a run would have."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ds_core.errors import ConfigError
from ds_zero.estimate.gathers import count_gathers
from ds_zero.estimate.memory import Held, gradients_in_flight, held
from ds_zero.estimate.setup import set_up
from ds_zero.estimate.shapes import from_shapes
from ds_zero.estimate.states import find_states
from ds_zero.estimate.traffic import Sent, traffic

__all__ = ["Estimate", "UnitRow", "estimate"]


@dataclass(frozen=True, slots=True)
class UnitRow:
    """One unit of the plan: the module whose forward uses it, its parameters, elements, and whether it stays whole."""

    title: str
    parameters: int
    numel: int
    is_whole: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one rank of a run holds and sends.

    Attributes:
        stage: ZeRO stage.
        world, ranks: ranks of the job, and data-parallel ones among them.
        rank: the rank it is for; others with the same `place` differ by padding at most.
        place: its place on each mesh axis that divides the model; empty where none does.
        numel, trainable_numel: elements of the parameters of the model, or of its share of it, and of those an
            optimizer updates.
        accumulation: micro-batches per step.
        optimizer: class of the optimizer; None without one.
        held: what stays between passes, at the step's end of backward.
        passing: what comes and goes within a pass, at most.
        sent: collectives of a step, from the third step on; not counted where ranks divide the model.
        units: the plan of units.
        activation_bytes: what the caller said activations take; they are not estimated.
    """

    stage: int
    world: int
    ranks: int
    rank: int
    numel: int
    trainable_numel: int
    accumulation: int
    optimizer: str | None
    held: tuple[Held, ...]
    passing: tuple[Held, ...]
    sent: tuple[Sent, ...]
    units: tuple[UnitRow, ...]
    activation_bytes: int = 0
    place: Mapping[str, int] = field(default_factory=dict)

    def bytes_of(self, *kinds: str) -> int:
        """Bytes of these kinds, wherever they are; without kinds, of all that is held between passes."""
        rows = [row for row in (*self.held, *self.passing) if row.kind in kinds] if kinds else self.held
        return sum(row.bytes for row in rows)

    def held_at(self, place: str) -> int:
        """Bytes held between passes at ``device``, ``host`` or ``nvme``."""
        return sum(row.bytes for row in self.held if row.place == place)

    @property
    def peak_bytes(self) -> int:
        """Device memory at most: what is held, what passes and what activations take."""
        return self.held_at("device") + sum(row.bytes for row in self.passing) + self.activation_bytes

    @property
    def padding_bytes(self) -> int:
        """Bytes held that belong to no parameter."""
        return sum(row.padding_bytes for row in self.held)

    @property
    def sent_bytes(self) -> int:
        """Bytes one rank sends in a step."""
        return sum(row.sent_bytes for row in self.sent)


def estimate(
    model: nn.Module | Mapping[str, Sequence[int]],
    config: Any,
    world: int,
    *,
    rank: int = 0,
    model_parameters: Any = None,
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    activation_bytes: int = 0,
    accelerator: str | None = None,
) -> Estimate:
    """What a rank of ``ds_core.initialize(model=model, config=config)`` on `world` ranks holds and sends.

    State between passes, and the collectives of a step, are what the run has, to the byte, for a model that uses each
    module once a forward (see `ds_zero.estimate.gathers`) and gives every trained parameter a gradient. Not counted:
    activations, what single kernels and the allocator take, and what transforms of other wheels do to the model, other
    than dividing it over ranks, which they tell by the hook ``ds_shares``.

    Args:
        model: a module on any device, the meta device best; or shapes by parameter name.
        config: as `initialize` takes it, or already loaded.
        world: ranks of the job.
        rank: of the job, the one it is for.
        model_parameters: as `initialize` takes it.
        optimizer: makes the optimizer from parameter groups, in the place of the config's.
        activation_bytes: what activations of a micro-batch take on a device.
        accelerator: the accelerator to plan for; None: the one a run here would take.

    Raises:
        ConfigError, MissingWheelError, AcceleratorError, ModelError: as `initialize` would.
    """
    for name, value, least in (("world", world, 1), ("rank", rank, 0), ("activation_bytes", activation_bytes, 0)):
        if value < least:
            raise ConfigError(f"{name} must be {least} or more, got {value}")
    module = model if isinstance(model, nn.Module) else from_shapes(model)
    if rank >= world:
        raise ConfigError(f"rank must be below the {world} ranks of the job, got {rank}")
    setup = set_up(module, config, world, rank=rank, model_parameters=model_parameters, accelerator=accelerator)
    states = find_states(setup, optimizer)
    gathers = count_gathers(setup)
    passing = (
        Held("gathered weights", "device", gathers.peak_bytes),
        Held("gradients in flight", "device", gradients_in_flight(setup)),
    )
    members = [member for group in setup.trainable for member in group.members]
    return Estimate(
        stage=setup.zero.stage,
        world=world,
        ranks=setup.ranks,
        rank=rank,
        numel=sum(p.numel() for p in setup.outline.parameters()),
        trainable_numel=sum(math.prod(member.parameter.shape) for member in members),
        accumulation=setup.accumulation,
        optimizer=None if states is None else states.name,
        held=held(setup, states),
        passing=tuple(row for row in passing if row.bytes),
        sent=() if setup.place else traffic(setup, gathers, by_segment=states is not None and states.by_segment),
        units=tuple(
            UnitRow(unit.title, len(unit.names), unit.numel, unit.index in setup.whole_units) for unit in setup.units
        ),
        activation_bytes=activation_bytes,
        place=setup.place,
    )
