"""The ZeRO parts: a sharded space in the place of the replicated one, and the check on unused parameters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ds_core.errors import EngineError
from ds_core.part import Part, Update
from ds_core.space import ReplicatedSpace
from ds_core.units import Unit, plan_units
from ds_zero.gathered import GatheredParameters, disown, own
from ds_zero.offload.make import make_placement
from ds_zero.partitioned import take_over
from ds_zero.sharded.coordinator import Limits, Phase
from ds_zero.sharded.space import PartitionedSpace
from ds_zero.sharded.state_dict import StateDictHooks
from ds_zero.space import ShardedSpace

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.space import UpdateSpace
    from ds_zero.config import ZeroConfig

__all__ = ["UnusedCheck", "Zero"]


class Zero(Part):
    """Prepared after precision and before the weights are laid out; the rest of the engine does not know it exists."""

    name = "zero"
    after = ("precision",)
    before = ("weights",)

    def __init__(self) -> None:
        self._space: PartitionedSpace | None = None
        self._owned: UpdateSpace | None = None
        self._states: StateDictHooks | None = None

    def prepare(self, build: Build) -> None:
        """Plans units at every stage, so that all of them add the same numbers; sets ``build.space``."""
        config = build.config["zero_optimization"]
        build.source = take_over
        build.units = units_for(build.module, config)
        build.space_policy = build.space_policy._replace(
            bucket_numel=min(config.reduce_bucket_size, config.allgather_bucket_size),
            overlap=config.overlap_comm if config.overlap_comm is not None else config.stage == 3,
            every_backward=config.stage >= 2,
        )
        if not build.parameters:
            return
        if config.stage == 0:
            build.space = ReplicatedSpace(build.parameters, **build.space_arguments())
        elif config.stage == 3 and build.mesh.size("data") > 1:
            build.space = self._space = _partitioned(build, config)
        else:
            build.space = ShardedSpace(build.parameters, **build.space_arguments())
        if isinstance(build.space, ShardedSpace):
            build.space.use_reduce_scatter = config.reduce_scatter
        build.placement = make_placement(build, config)
        own(build.space)
        self._owned = build.space
        if self._space is not None:
            self._states = StateDictHooks(build.module, self._space)

    def before_backward(self) -> None:
        """A pass of gathers begins."""
        if self._space is not None:
            self._space.coordinator.begin(Phase.BACKWARD)

    def after_backward(self) -> None:
        """And ends."""
        if self._space is not None:
            self._space.coordinator.end()

    def gathered(self, parameters: Sequence[torch.nn.Parameter]) -> AbstractContextManager[Any]:
        """Full values at stage 3; changes made alike on all ranks are kept."""
        return GatheredParameters(parameters) if self._space is not None else nullcontext()

    def close(self) -> None:
        """Forgets the parameters."""
        if self._states is not None:
            self._states.close()
        if self._owned is not None:
            disown(self._owned)


def units_for(module: torch.nn.Module, config: ZeroConfig) -> tuple[Unit, ...]:
    """The plan of units that the configuration asks for; the same at every stage."""
    return plan_units(
        module,
        small_numel=config.param_persistence_threshold,
        limit_numel=config.module_granularity_threshold or None,
    )


def _partitioned(build: Build, config: ZeroConfig) -> PartitionedSpace:
    limits = Limits(
        prefetch=config.prefetch_bucket_size,
        live=config.max_live_parameters,
        reuse=config.max_reuse_distance or 0,
        sequential=config.allgather_sequential,
    )
    return PartitionedSpace(
        [*build.parameters, *build.frozen_parameters],
        root=build.module,
        units=build.units,
        limits=limits,
        whole=frozenset(unit.index for unit in build.units if unit.is_small),
        shard_device=build.device,
        **build.space_arguments(),
    )


class UnusedCheck(Part):
    """Makes a step in which a parameter has no gradient on any rank an error; ``ignore_unused_parameters`` false."""

    name = "zero_unused"
    after = ("gradient_norm",)
    before = ("optimizer",)

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space

    def before_update(self, update: Update) -> None:
        """Looks at which parameters the ranks used.

        Raises:
            EngineError: on all ranks, with the names of the unused parameters.
        """
        if self._space is None or update.used is None:
            return
        unused = [
            slot.name
            for flat, used in zip(self._space.flats, update.used, strict=True)
            for slot, is_used in zip(flat.layout.slots, used, strict=True)
            if not is_used
        ]
        if unused:
            raise EngineError(
                f"step {update.step}: {len(unused)} parameters received no gradient on any rank, first {unused[0]!r}; "
                "freeze them with requires_grad_(False), or set zero_optimization.ignore_unused_parameters to true"
            )
