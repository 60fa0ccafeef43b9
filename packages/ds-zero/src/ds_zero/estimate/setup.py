"""What a run would set up before it holds any memory: config, dtypes, units, groups and layouts.

Every decision is made by the code that a run goes through: the config is resolved, the precision part prepares an
outline of the model, and units and layouts are planned by the functions that plan them for an engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from ds_core import accelerator as accelerators
from ds_core import plugins
from ds_core.build import Build
from ds_core.config import Config, Facts, RawConfig, load, resolve
from ds_core.errors import ModelError
from ds_core.flat import FROZEN, NamedParameter, group_layouts
from ds_core.holdings import Replicas
from ds_core.layout import FlatLayout, Range
from ds_core.mesh import DATA_AXIS, MeshPlan, plan
from ds_core.parameters import optimizer_groups
from ds_core.parts import Accumulation, Precision
from ds_core.space import SpacePolicy
from ds_core.units import Unit
from ds_zero.estimate.shapes import outline
from ds_zero.estimate.share import Kept, batch_of, keep_shares
from ds_zero.part import mark_leaves, policy_for, units_for

if TYPE_CHECKING:
    from ds_zero.config import ZeroConfig

__all__ = ["Group", "Places", "Setup", "set_up"]


@dataclass(frozen=True, slots=True)
class Places:
    """Where each kind of state lives: ``device``, ``host`` or ``nvme``."""

    weights: str = "device"
    gradients: str = "device"
    optimizer: str = "device"


@dataclass(frozen=True, slots=True)
class Group:
    """A flat group before it has memory.

    Attributes:
        members: its parameters, in order.
        layout: where each lies.
        grad_dtype: dtype gradients accumulate in.
        rank, ranks: this rank's place among those that hold the same values, and how many these are.
        is_late: whether some of them work on the same samples; see Note [Late groups] in `ds_core.holdings`.
    """

    members: Sequence[NamedParameter]
    layout: FlatLayout
    grad_dtype: torch.dtype
    rank: int
    ranks: int
    is_late: bool = False

    @property
    def index(self) -> int:
        """The optimizer group, or `FROZEN`."""
        return self.members[0].group_index

    @property
    def is_frozen(self) -> bool:
        """True when no optimizer updates it."""
        return self.index == FROZEN

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the working weights."""
        return self.members[0].parameter.dtype

    @property
    def wire_dtype(self) -> torch.dtype:
        """Dtype gradients travel in."""
        return self.members[0].reduce_dtype or self.grad_dtype


@dataclass(frozen=True, slots=True)
class Setup:
    """Everything that decides about memory and traffic.

    Attributes:
        model: the model as handed over; its tree says in which order modules are used.
        outline: its outline in the dtypes of the run.
        config: resolved for the data-parallel ranks.
        ranks: data-parallel ranks.
        mesh: of the job.
        place: the rank's place on each mesh axis that divides the model; empty where none does.
        units: the plan of units.
        groups: flat groups the space would keep.
        loose: parameters it would leave alone.
        policy: how gradients come together.
        master_dtype: dtype of the optimizer's own copy; None for no copy.
        optimizer_groups: hyperparameters and outline parameters by optimizer group.
        device: where an optimizer is tried out.
        places: where things live.
        whole_units: units that are never in shards.
    """

    model: nn.Module
    outline: nn.Module
    config: Config
    ranks: int
    mesh: MeshPlan
    place: dict[str, int]
    units: tuple[Unit, ...]
    groups: tuple[Group, ...]
    loose: tuple[NamedParameter, ...]
    policy: SpacePolicy
    master_dtype: torch.dtype | None
    optimizer_groups: tuple[dict[str, Any], ...]
    device: torch.device
    places: Places
    whole_units: frozenset[int]

    @property
    def zero(self) -> ZeroConfig:
        """The section ``zero_optimization``."""
        return cast("ZeroConfig", self.config["zero_optimization"])

    @property
    def trainable(self) -> list[Group]:
        """Groups that an optimizer updates."""
        return [group for group in self.groups if not group.is_frozen]

    @property
    def is_sharded(self) -> bool:
        """Whether some elements are updated by other ranks only."""
        return self.zero.stage > 0 and self.ranks > 1

    @property
    def is_partitioned(self) -> bool:
        """Whether working weights are in shards."""
        return self.zero.stage == 3 and self.ranks > 1

    @property
    def accumulation(self) -> int:
        """Micro-batches per step."""
        return self.config.batch.accumulation_steps

    def owned(self, group: Group) -> tuple[Range, ...]:
        """Ranges that the optimizer of this rank updates."""
        is_sharded = self.zero.stage > 0 and group.ranks > 1
        return group.layout.shard_ranges(group.rank) if is_sharded else group.layout.whole()


def set_up(
    model: nn.Module,
    config: Any,
    world: int,
    *,
    rank: int = 0,
    model_parameters: Any = None,
    accelerator: str | None = None,
) -> Setup:
    """What ``ds_core.initialize(model=model, config=config)`` would plan on `world` ranks; no rank is started.

    Args:
        model: on any device.
        config: as `initialize` takes it, or already loaded.
        world: ranks of the job.
        rank: the one to plan for.
        model_parameters: as `initialize` takes it: parameters or group dicts; None trains all that require gradients.
        accelerator: name of the accelerator to plan for; None: the one a run on this machine would take.

    Raises:
        ConfigError, MissingWheelError, AcceleratorError, ModelError: as `initialize` would.
    """
    manager = plugins.manager()
    raw = config if isinstance(config, RawConfig) else load(config)
    device = accelerators.select(accelerator, config=raw.accelerator, manager=manager)
    sketch = outline(model)
    facts = Facts(
        world_size=world,
        device_type=device.device_type,
        param_numel=sum(p.numel() for p in sketch.twins.values()),
        model_dtype=str(next(sketch.module.parameters()).dtype).removeprefix("torch."),
    )
    resolved = resolve(raw, facts)
    mesh = plan([request.item for request in manager.call("ds_mesh_axes", config=resolved, model=model)], world)
    ranks = mesh.size(*mesh.batch_axes)
    resolved = resolved.for_data_parallel(ranks)
    zero: ZeroConfig = resolved["zero_optimization"]
    _, groups = optimizer_groups(model, None, model_parameters)
    place = {axis.name: mesh.coords(rank)[axis.name] for axis in mesh.axes if axis.size > 1 and axis.name != DATA_AXIS}
    kept = keep_shares(sketch, model, resolved, mesh, rank, manager) if place else Kept(model, {})
    _check_trains(sketch.module, rank)
    groups = [
        {**group, "params": [sketch.twins[id(p)] for p in group["params"] if id(p) in sketch.twins]} for group in groups
    ]
    build = Build(
        config=resolved,
        accelerator=device,
        mesh=cast("Any", mesh),
        module=sketch.module,
        device=torch.device("meta"),
        rank=0,
        optimizer=None,
        optimizer_groups=groups,
        lr_scheduler=None,
        manager=manager,
        accumulation=Accumulation(),
        units=_marked_units(kept.module, zero),
        holdings=kept.holdings,
    )
    Precision().prepare(build)
    policy = policy_for(SpacePolicy(grad_dtype=build.grad_dtype), zero)
    trained, frozen = build.parameters, build.frozen_parameters
    is_partitioned = zero.stage == 3 and ranks > 1
    laid = [*trained, *frozen] if is_partitioned and trained else trained
    layouts = group_layouts(laid, shards=ranks, bucket_numel=policy.bucket_numel)
    batch = Replicas(*batch_of(mesh, rank), None, "batch")
    return Setup(
        model=kept.module,
        outline=sketch.module,
        config=resolved,
        ranks=ranks,
        mesh=mesh,
        place=place,
        units=tuple(build.units),
        groups=tuple(_group(members, layout, policy, batch) for members, layout in layouts),
        loose=() if len(laid) > len(trained) else tuple(frozen),
        policy=policy,
        master_dtype=build.master_dtype,
        optimizer_groups=tuple(groups),
        device=device.device(0),
        places=_places(zero),
        whole_units=frozenset(unit.index for unit in build.units if unit.is_small or not is_partitioned),
    )


def _group(members: Sequence[NamedParameter], layout: FlatLayout, policy: SpacePolicy, batch: Replicas) -> Group:
    holders = members[0].replicas or batch
    dtype = policy.grad_dtype or members[0].parameter.dtype
    return Group(members, layout, dtype, holders.rank, holders.ranks, not holders.is_within(batch))


def _check_trains(module: nn.Module, rank: int) -> None:
    if next(iter(module.parameters()), None) is None:
        raise ModelError(f"rank {rank} would hold no parameters; divide the model over fewer ranks")


def _places(zero: ZeroConfig) -> Places:
    """Where shards live. Gradients of an offloaded optimizer are in host memory, where it reads them."""
    optimizer = _device_of(getattr(zero, "offload_optimizer", None))
    weights = _device_of(getattr(zero, "offload_param", None)) if zero.stage == 3 else "device"
    return Places(weights=weights, gradients="host" if optimizer != "device" else "device", optimizer=optimizer)


def _device_of(section: Any) -> str:
    device = getattr(section, "device", None)
    name = str(getattr(device, "value", device) or "none")
    return {"none": "device", "cpu": "host"}.get(name, name)


def _marked_units(model: torch.nn.Module, zero: ZeroConfig) -> tuple[Unit, ...]:
    mark_leaves(model, zero)
    return units_for(model, zero)
