"""Builds an engine, top to bottom: config, accelerator, mesh, model, parts, runner, engine."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ds_core import accelerator as accelerators
from ds_core import comm, groups, plugins
from ds_core.config import Config, Facts, RawConfig, load, resolve
from ds_core.engine import Engine
from ds_core.flat import FROZEN, Logical, NamedParameter
from ds_core.holdings import Holding, split_over
from ds_core.mesh import Mesh, plan
from ds_core.ops.dispatch import meet
from ds_core.optimizer_handle import OptimizerHandle
from ds_core.parameters import check_model, optimizer_groups
from ds_core.part import Part, order_parts
from ds_core.parts import Accumulation, LossScale, OptimizerStep, core_parts
from ds_core.parts.loss_scale import StaticLossScaler
from ds_core.placeholder import move_module
from ds_core.placement import Placement
from ds_core.runner import PlainRunner, Runner
from ds_core.space import SpacePolicy, UpdateSpace
from ds_core.transforms import apply_transforms
from ds_core.units import Unit
from ds_core.values import Source, present

if TYPE_CHECKING:
    from ds_core.accelerator import Accelerator
    from ds_core.data import DistributedLoader
    from ds_core.monitors import MonitorMaster
    from ds_core.parts.clock import Stopwatch

__all__ = ["Build", "Request", "build_engine"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What the caller of ``initialize`` handed over."""

    model: torch.nn.Module
    config: str | Path | Mapping[str, Any] | None
    optimizer: torch.optim.Optimizer | Callable[..., torch.optim.Optimizer] | None = None
    model_parameters: Any = None
    training_data: Any = None
    lr_scheduler: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    accelerator: str | None = None
    distributed_port: int = 29500


@dataclass(slots=True)
class Build:
    """The whiteboard of a build: each step reads what earlier ones wrote.

    Attributes:
        optimizer: the caller's optimizer, then, once the optimizer part is prepared, the one that is driven.
        master_dtype: dtype of the optimizer's own copy of the weights; None for no copy.
        grad_dtype: dtype gradients accumulate in; None for the parameters' own.
        units: which parameters move together; a sharding part plans them, else all are one unit.
        source: where full values of parameters come from; None: they are in ``parameter.data``.
        holdings: how this rank holds parameters that not every rank of the batch holds whole; transforms fill it.
        elsewhere: names of parameters and buffers of the model that only other ranks hold.
        reduce_dtypes: dtype in which a parameter's gradient travels, where it is not the gradient's own.
        space: where updates happen; a part before ``weights`` may set a sharded one.
        placement: where masters and optimizer states live; a part before ``optimizer`` may set another.
        space_policy: how the space stores and reduces gradients; the same part may change it.
        scaler: the loss scaler.
        stopwatch: times the phases of a step, where that was asked for.
        monitor: where metrics go; on the first rank.
        is_monitored: whether metrics go anywhere; the same on all ranks.
    """

    config: Config
    accelerator: Accelerator
    mesh: Mesh
    module: torch.nn.Module
    device: torch.device
    rank: int
    optimizer: Any
    optimizer_groups: list[dict[str, Any]]
    lr_scheduler: Any
    manager: plugins.PluginManager
    accumulation: Accumulation
    space_policy: SpacePolicy = field(default_factory=SpacePolicy)
    master_dtype: torch.dtype | None = None
    grad_dtype: torch.dtype | None = None
    reduce_dtypes: dict[torch.nn.Parameter, torch.dtype] = field(default_factory=dict)
    units: Sequence[Unit] = ()
    source: Source | None = None
    holdings: dict[torch.nn.Parameter, Holding] = field(default_factory=dict)
    elsewhere: set[str] = field(default_factory=set)
    space: UpdateSpace | None = None
    placement: Placement = field(default_factory=Placement)
    stopwatch: Stopwatch | None = None
    monitor: MonitorMaster | None = None
    is_monitored: bool = False
    scaler: StaticLossScaler = field(default_factory=StaticLossScaler)
    runner: Runner = field(default_factory=PlainRunner)
    training_data: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None
    loader: DistributedLoader | None = None

    @property
    def parameters(self) -> list[NamedParameter]:
        """Trainable parameters in optimizer-group order, with their names and reduction dtypes."""
        names = {id(parameter): name for name, parameter in self.module.named_parameters()}
        units = self._unit_of
        return [
            self._named(names[id(parameter)], parameter, index, units)
            for index, group in enumerate(self.optimizer_groups)
            for parameter in group["params"]
            if parameter.requires_grad
        ]

    @property
    def frozen_parameters(self) -> list[NamedParameter]:
        """Parameters that no optimizer group trains."""
        trained = {id(member.parameter) for member in self.parameters}
        units = self._unit_of
        return [
            self._named(name, parameter, FROZEN, units)
            for name, parameter in self.module.named_parameters()
            if id(parameter) not in trained
        ]

    def _named(
        self, name: str, parameter: torch.nn.Parameter, group_index: int, units: Mapping[str, int]
    ) -> NamedParameter:
        holding = self.holdings.get(parameter)
        return NamedParameter(
            name,
            parameter,
            group_index,
            self.reduce_dtypes.get(parameter),
            units.get(name, 0),
            None if holding is None else holding.replicas,
            None if holding is None or holding.shape is None else Logical(holding.shape, holding.start),
        )

    @property
    def _unit_of(self) -> dict[str, int]:
        return {name: unit.index for unit in self.units for name in unit.names}

    @property
    def loss_scale(self) -> float:
        """The factor losses are multiplied by just now."""
        return self.scaler.scale

    def full(self, parameter: torch.nn.Parameter) -> torch.Tensor:
        """The value of a parameter, for transforms: gathered if it is in pieces. Called on all ranks in one order."""
        return (self.source or present)(parameter)

    def split_over(self, parameters: Iterable[torch.nn.Parameter], axis: str, *, sliced: bool = True) -> None:
        """See `ds_core.holdings.split_over`."""
        split_over(self, parameters, axis, sliced=sliced)

    def space_arguments(self) -> dict[str, Any]:
        """Keyword arguments every `UpdateSpace` takes."""
        model_axes = self.mesh.model_axes
        return {
            "policy": self.space_policy._replace(grad_dtype=self.grad_dtype),
            "replicas": self.mesh.replicas(*self.mesh.batch_axes),
            "model": self.mesh.replicas(*model_axes) if self.mesh.size(*model_axes) > 1 else None,
            "source": self.source,
        }

    def optimizer_handle(self, parts: list[Part]) -> OptimizerHandle | None:
        """The handle over the optimizer that the optimizer part drives, or None."""
        driven = [part.optimizer for part in parts if isinstance(part, OptimizerStep)]
        scale = next(part for part in parts if isinstance(part, LossScale))
        return OptimizerHandle(driven[0], scale) if driven and driven[0] is not None else None


def build_engine(request: Request) -> Engine:
    """One engine, from what the caller handed over. Called on all ranks.

    Raises:
        ConfigError, MissingWheelError, AcceleratorError, ModelError, PluginError, CommError: each with what to change.
    """
    manager = plugins.manager()
    raw = load(request.config)
    check_model(request.model)
    accelerator = accelerators.select(request.accelerator, config=raw.training.get("accelerator"), manager=manager)
    accelerator.prepare()
    comm.init_distributed(distributed_port=request.distributed_port, accelerator=accelerator)
    accelerators.agree(accelerator, comm.gather_json, manager=manager)
    device = _begin_device(accelerator)
    world_mesh, config = _resolve(raw, request.model, accelerator, manager)
    groups.use(world_mesh)
    comm.configure(config)
    if config.training.log_level is not None:
        logging.getLogger("ds_core").setLevel(config.training.log_level.upper())
    module = move_module(request.model, device)
    core = core_parts()
    build = Build(
        config=config,
        accelerator=accelerator,
        mesh=world_mesh,
        module=module,
        device=device,
        rank=comm.get_rank(),
        optimizer=None,
        optimizer_groups=[],
        lr_scheduler=request.lr_scheduler,
        manager=manager,
        accumulation=next(part for part in core if isinstance(part, Accumulation)),
        space_policy=_space_policy(config),
        training_data=request.training_data,
        collate_fn=request.collate_fn,
    )
    before = list(build.module.parameters())
    build.module = apply_transforms(build)
    kept = {id(parameter) for parameter in build.module.parameters()}
    build.optimizer, build.optimizer_groups = optimizer_groups(
        build.module,
        request.optimizer,
        request.model_parameters,
        dropped=frozenset(id(parameter) for parameter in before if id(parameter) not in kept),
    )
    parts = order_parts([*core, *(given.item for given in manager.call("ds_parts", build=build))])
    for part in parts:
        part.prepare(build)
    answer = manager.first("ds_runner", build=build)
    build.runner = answer.item if answer is not None else build.runner
    engine = Engine(build, parts)
    if engine.optimizer is not None:
        engine.optimizer.attach(engine)
    accelerator.empty_cache()  # the caller's own copies of the weights are gone
    logger.info("engine ready: parts %s", ", ".join(part.name for part in parts))
    if config.training.dump_state and build.rank == 0:
        for row in config.rows():
            logger.info("%s = %s (%s)", row.key, row.value, row.origin)
    return engine


def _begin_device(accelerator: Accelerator) -> torch.device:
    """This rank's device, in use from here on; ranks share one where there are fewer devices.

    Before the mesh is made, for torch's takes a device that is not in use yet and the local rank for its index.
    """
    index = comm.get_local_rank() % max(accelerator.device_count(), 1)
    accelerator.set_device(index)
    device = accelerator.device(index)
    meet(device)
    return device


def _resolve(
    raw: RawConfig, model: torch.nn.Module, accelerator: Accelerator, manager: plugins.PluginManager
) -> tuple[Mesh, Config]:
    world = comm.get_world_size()
    parameter = next(model.parameters())
    facts = Facts(
        world_size=world,
        device_type=accelerator.device_type,
        param_numel=sum(p.numel() for p in model.parameters()),
        model_dtype=str(parameter.dtype).removeprefix("torch."),
    )
    config = resolve(raw, facts)
    wanted = [request.item for request in manager.call("ds_mesh_axes", config=config, model=model)]
    world_mesh = Mesh(plan(wanted, world), accelerator.device_type)
    config = config.for_data_parallel(world_mesh.size(*world_mesh.batch_axes))
    return world_mesh, config


def _space_policy(config: Config) -> SpacePolicy:
    training = config.training
    return SpacePolicy(
        mean=training.gradient_allreduce_op == "mean",
        prescale=training.prescale_gradients,
        predivide=training.gradient_predivide_factor,
    )
