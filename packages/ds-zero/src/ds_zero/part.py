"""The ZeRO part: plans units and puts a sharded space in the place of the replicated one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from ds_core.part import Part
from ds_core.space import ReplicatedSpace
from ds_core.units import Unit, plan_units
from ds_zero.config import MOE_BLOCKS
from ds_zero.gathered import GatheredParameters, disown, own
from ds_zero.leaf import (
    set_z3_leaf_modules,
    set_z3_leaf_modules_by_name,
    set_z3_leaf_modules_by_suffix,
    z3_leaf_module,
)
from ds_zero.offload.make import make_placement
from ds_zero.offload.shelf import make_shelf
from ds_zero.params import describe, describe_shard, forget
from ds_zero.partitioned import take_over
from ds_zero.sharded.apply import GatheringApply
from ds_zero.sharded.coordinator import Limits, Phase
from ds_zero.sharded.space import PartitionedSpace
from ds_zero.sharded.state_dict import StateDictHooks
from ds_zero.space import ShardedSpace

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.space import SpacePolicy, UpdateSpace
    from ds_zero.config import ZeroConfig

__all__ = ["Zero", "limits_for", "mark_leaves", "policy_for", "read_from_pieces", "units_for"]


class Zero(Part):
    """Prepared after precision and before the weights are laid out; the rest of the engine does not know it exists."""

    name = "zero"
    after = ("precision",)
    before = ("weights",)

    def __init__(self) -> None:
        self._space: PartitionedSpace | None = None
        self._owned: UpdateSpace | None = None
        self._states: StateDictHooks | None = None
        self._applies: GatheringApply | None = None
        self._described: list[torch.nn.Parameter] = []

    def prepare(self, build: Build) -> None:
        """Plans units at every stage, so that all of them add the same numbers; sets ``build.space``."""
        config = build.config["zero_optimization"]
        mark_leaves(build.module, config)
        build.units = units_for(build.module, config)
        build.space_policy = policy_for(build.space_policy, config)
        if not build.parameters:
            return
        if config.stage == 0:
            build.space = ReplicatedSpace(build.parameters, **build.space_arguments())
        elif config.stage == 3 and (
            build.mesh.size(*build.mesh.batch_axes) > 1 or config.offload_param.device != "none"
        ):
            build.space = self._space = _partitioned(build, config)
        else:
            build.space = ShardedSpace(build.parameters, **build.space_arguments())
        if isinstance(build.space, ShardedSpace):
            build.space.use_reduce_scatter = config.reduce_scatter
            build.space.use_all_gather = config.allgather_partitions
        build.placement = make_placement(build, config)
        own(build.space)
        self._owned = build.space
        if config.stage == 3:
            self._describe(build)
        if self._space is not None:
            self._states = StateDictHooks(build.module, self._space)
            self._applies = GatheringApply(build.module) if config.override_module_apply else None

    def _describe(self, build: Build) -> None:
        small = {name for unit in build.units if unit.is_small for name in unit.names}
        group = build.mesh.group(*build.mesh.batch_axes)
        for name, parameter in build.module.named_parameters():
            describe(parameter, group, persists=self._space is None or name in small)
            if self._space is None:
                describe_shard(parameter, parameter.detach().view(-1))
            self._described.append(parameter)
        if self._space is not None:
            for parameter, shard in self._space.shards_in_memory():
                describe_shard(parameter, shard)

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
        if self._applies is not None:
            self._applies.close()
        if self._owned is not None:
            disown(self._owned)
        for parameter in self._described:
            forget(parameter)


def read_from_pieces(module: torch.nn.Module, build: Build) -> torch.nn.Module:
    """Lets everything that is built read parameters that were constructed in shards. A transform; changes no module."""
    build.source = take_over
    return module


def units_for(module: torch.nn.Module, config: ZeroConfig) -> tuple[Unit, ...]:
    """The plan of units that the configuration asks for; the same at every stage."""
    return plan_units(
        module,
        small_numel=config.param_persistence_threshold,
        small_total_numel=config.model_persistence_threshold,
        limit_numel=config.module_granularity_threshold or None,
        is_leaf=z3_leaf_module,
    )


def policy_for(policy: SpacePolicy, config: ZeroConfig) -> SpacePolicy:
    """`policy` with what the stage and its keys say of gradients."""
    return policy._replace(
        bucket_numel=min(config.reduce_bucket_size, config.allgather_bucket_size),
        overlap=config.overlap_comm if config.overlap_comm is not None else config.stage == 3,
        every_backward=config.stage >= 2,
    )


def limits_for(config: ZeroConfig) -> Limits:
    """How much is gathered at a time at stage 3."""
    return Limits(
        prefetch=config.prefetch_bucket_size,
        live=config.max_live_parameters,
        reuse=config.max_reuse_distance or 0,
        sequential=config.allgather_sequential,
        log_changes=config.log_trace_cache_warnings,
    )


def mark_leaves(module: torch.nn.Module, config: ZeroConfig) -> None:
    """Marks the leaf modules that the configuration names; the default classes need not be there."""
    leaves = config.leaf_module
    set_z3_leaf_modules(module, leaves.classes, raise_if_not_found=leaves.classes != MOE_BLOCKS)
    set_z3_leaf_modules_by_name(module, leaves.names)
    set_z3_leaf_modules_by_suffix(module, leaves.name_suffixes)


def _partitioned(build: Build, config: ZeroConfig) -> PartitionedSpace:
    return PartitionedSpace(
        [*build.parameters, *build.frozen_parameters],
        root=build.module,
        units=build.units,
        limits=limits_for(config),
        whole=frozenset(unit.index for unit in build.units if unit.is_small),
        shelf=make_shelf(build, config),
        gather_by_sum=config.use_all_reduce_for_fetch_params,
        **build.space_arguments(),
    )
