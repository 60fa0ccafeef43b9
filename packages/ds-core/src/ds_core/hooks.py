"""Hook specs: the doors through which every wheel, ours or a stranger's, comes in.

A plugin is a light module that an entry point in group ``ds_core.plugins`` names. It imports the standard library
and this module only, states ``DS_HOOK_API = (major, minor)``, and implements some of the hooks below as module-level
functions marked with ``@hookimpl``. Hooks *return data*: frozen dataclasses whose heavy halves are references of the
form ``"package.module:attribute"``, imported at first use. Inside a training step nothing goes through pluggy.

Each spec says when it is called, on which ranks, and how often.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    import torch

    from ds_core.build import Build
    from ds_core.config import Config
    from ds_core.mesh import MeshPlan
    from ds_core.part import Part
    from ds_core.runner import Runner

__all__ = [
    "ENTRY_POINT_GROUP",
    "HOOK_API",
    "AcceleratorEntry",
    "Availability",
    "AxisRequest",
    "CheckpointFormatEntry",
    "CommBackendEntry",
    "CommandEntry",
    "ConfigSection",
    "DeviceFacts",
    "LauncherEntry",
    "Mismatch",
    "MonitorEntry",
    "OpImpl",
    "OptimizerEntry",
    "Proof",
    "ReportRow",
    "SchedulerEntry",
    "Share",
    "TransformEntry",
    "hookimpl",
    "hookspec",
]

ENTRY_POINT_GROUP = "ds_core.plugins"
HOOK_API = (1, 4)
"""(major, minor) of the specs in this file. Minor only adds; a plugin needs the same major and at most this minor."""

hookspec = pluggy.HookspecMarker("ds_core")
hookimpl = pluggy.HookimplMarker("ds_core")

Ref = str
"""A lazy reference, ``"package.module:attribute"``; `ds_core.plugins.load_ref` imports it."""


@dataclass(frozen=True, slots=True)
class Availability:
    """Answer of a cheap probe: usable here or not, and why. Never an exception."""

    usable: bool
    reason: str = ""
    device_count: int = 0


class Proof(enum.Enum):
    """How an implementation was proven before its wheel was published. Since hook API 1.2."""

    HARDWARE = "run on hardware"
    EXECUTED = "executed"  # the shipped code, on the CPU: as the device itself, or as a device of the vendor's runtime
    EMULATED = "emulated"  # its source, compiled for the host; the shipped code was compiled, and never run
    COMPILED = "compiled"  # and never run
    UNSTATED = "unstated"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Something of the machine that does not fit what a wheel was built for. Since hook API 1.2.

    Args:
        what: a driver, a library, a module, for example ``"NVIDIA driver"``.
        built_for: what the wheel was built against.
        needs: the least that works, or the range.
        found: what is there; ``"none"`` for nothing.
        remedy: what to do, an imperative sentence.
    """

    what: str
    built_for: str
    needs: str
    found: str
    remedy: str


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What ``ds report`` says of a device beside its state. Since hook API 1.2.

    Args:
        built_for: what the native code of the wheel was built for; empty when it has none.
        driver: version of the driver; ``"none"`` when there is none.
        libraries: version by name of what the device is reached through, such as torch's module and collectives.
        left_out: what this build of the wheel lacks, and why, a line each.
        mismatches: every one, not the first only.
        unproven: claims that only the hardware can prove, a line each.
        kernels: ops that a full build of the wheel has a kernel for, whether this build has it or not, and its proof.
    """

    built_for: str = ""
    driver: str = "none"
    libraries: Mapping[str, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    mismatches: Sequence[Mismatch] = ()
    unproven: Sequence[str] = ()
    kernels: Mapping[str, Proof] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConfigSection:
    """A top-level config key and the pydantic model that validates it.

    Args:
        key: JSON key at the top level, for example ``"zero_optimization"``.
        model: reference to a pydantic model with ``extra="forbid"``.
        legacy_keys: old top-level spellings, each mapped to the key that replaces it.
        summary: one line for the generated reference.
    """

    key: str
    model: Ref
    legacy_keys: Mapping[str, str] = field(default_factory=dict)
    summary: str = ""


@dataclass(frozen=True, slots=True)
class AcceleratorEntry:
    """One device kind.

    Args:
        name: short lower-case name, for example ``"cuda"``.
        is_available: cheap probe; may import what it must, must not raise for "not here".
        factory: reference to a callable that returns a `ds_core.accelerator.Accelerator`.
        priority: higher wins among usable ones when nothing was asked for; equals are an error.
        is_floor: a CPU-like fallback that never competes with a real device.
        device_nodes: glob patterns that exist when the hardware is present, for example ``"/dev/nvidia[0-9]*"``.
        impersonates: device names this one also answers to (ROCm answers to cuda).
        facts: reference to ``facts() -> DeviceFacts`` for ``ds report``; must not raise for a device that is not here.
            Since hook API 1.2.
    """

    name: str
    is_available: Callable[[], Availability]
    factory: Ref
    priority: int = 100
    is_floor: bool = False
    device_nodes: Sequence[str] = ()
    impersonates: Sequence[str] = ()
    facts: Ref | None = None


@dataclass(frozen=True, slots=True)
class OpImpl:
    """A native implementation of one op of the op table.

    Args:
        op: name in the op table, without namespace, for example ``"adam_"``.
        device_type: torch device type the implementation serves.
        load: reference to the callable with the op's schema; imported at first use.
        supports: reference to ``supports(*args, **kwargs) -> str | None``, a reason when it does not serve this call
            (the reference then runs); None serves every call the schema allows.
        priority: higher wins on the same device type; equals from two wheels are a conflict.
        proof: how the kernel was proven; ``ds ops`` and ``ds report`` say it. Since hook API 1.2.
        accelerator: name of the accelerator it is for, where several share a torch device type, as ROCm and CUDA do: it
            is used only where that one is usable. Empty where there is but one. Since hook API 1.2.
    """

    op: str
    device_type: str
    load: Ref
    supports: Ref | None = None
    priority: int = 100
    proof: Proof = Proof.UNSTATED
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class CommBackendEntry:
    """A torch.distributed backend.

    Args:
        name: as in ``init_distributed(dist_backend=...)`` and DS_COMM_BACKEND; lower case.
        device_types: torch device types whose tensors it takes.
        factory: reference to ``factory(store, rank, world_size, timeout)``, which returns a
            ``torch.distributed.Backend`` or a ``ProcessGroup`` of this rank; called for every group it serves.
        supports: reference to ``supports(*, device_type, world_size, local_world_size) -> str | None``: why it
            cannot serve a job: an error when it was asked for, gloo when it was not. None serves every job.
        priority: for plugins that bring one name twice: higher wins, equals are a conflict.
    """

    name: str
    device_types: Sequence[str]
    factory: Ref
    supports: Ref | None = None
    priority: int = 100


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """An optimizer that a config names.

    Args:
        name: as in ``optimizer.type``; compared without case.
        factory: reference to ``factory(param_groups, **params) -> torch.optim.Optimizer``.
        device_types: torch device types it serves; empty serves all.
        priority: higher wins for the same name on the same device.
        elementwise: every element is updated from its own gradient only, so flat shards give the same numbers.
    """

    name: str
    factory: Ref
    device_types: Sequence[str] = ()
    priority: int = 0
    elementwise: bool = True


@dataclass(frozen=True, slots=True)
class SchedulerEntry:
    """A learning-rate schedule that a config names: ``factory(optimizer, **params)``."""

    name: str
    factory: Ref


@dataclass(frozen=True, slots=True)
class AxisRequest:
    """A mesh axis a feature needs. Axes are ordered by `place`, outermost (slowest varying rank) first.

    Places in use: 100 pipe, 200 data, 300 expert, 400 sequence, 500 tensor.

    Args:
        name: unique in a mesh.
        size: ranks along it.
        place: where it comes in the order.
        splits_batch: ranks along it work on different samples, as those along the data axis do; else on the same ones.
            Since hook API 1.3.
    """

    name: str
    size: int
    place: int
    splits_batch: bool = False


@dataclass(frozen=True, slots=True)
class TransformEntry:
    """A model-to-model transform: ``apply(module, build) -> module``, with its place among the others."""

    name: str
    apply: Callable[..., Any]
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    conflicts_with: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Share:
    """What a rank would keep of one parameter of a model that ranks divide. Since hook API 1.4.

    Args:
        name: of the parameter in the undivided model.
        is_kept: False: this rank has none of it.
        axis: of the batch, along which ranks hold different values; empty for none.
        slices: equal parts that dim 0 is cut into along it.
        shared: by an axis of the model, the places along it that hold the same values; left out: this rank's alone.
    """

    name: str
    is_kept: bool = True
    axis: str = ""
    slices: int = 1
    shared: Mapping[str, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MonitorEntry:
    """A metric sink: the config section that enables it, and ``factory(section) -> ds_core.monitors.Monitor``."""

    name: str
    section: str
    factory: Ref


@dataclass(frozen=True, slots=True)
class LauncherEntry:
    """A way to start ranks on several machines: ``factory() -> ds_core.launch.Launcher``."""

    name: str
    factory: Ref
    summary: str = ""


@dataclass(frozen=True, slots=True)
class CheckpointFormatEntry:
    """A checkpoint format that ``load_checkpoint`` and ``ds checkpoint import`` read. Since hook API 1.1.

    Args:
        name: as in ``open_source(..., format=name)``; lower case.
        detect: reference to ``detect(directory: Path, tag: str | None) -> str | None``: the tag of the checkpoint it
            would read, ``""`` for a folder without tags, None when the folder is of another format. Looks at names and
            small files only, never raises for a folder it does not know.
        open: reference to ``open(directory: Path, tag: str, strict: bool) -> ds_core.checkpoint.source.Source``.
        summary: what it looks for, for messages: "what a folder of this format has".
        specificity: of several formats that recognise a folder the highest is taken; equals are an error.
    """

    name: str
    detect: Ref
    open: Ref
    summary: str = ""
    specificity: int = 100


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """A subcommand of ``ds``: reference to a typer app or a function."""

    name: str
    app: Ref
    help: str = ""


@dataclass(frozen=True, slots=True)
class ReportRow:
    """One row of ``ds report``. `status` is one of ok, warn, error, info."""

    section: str
    name: str
    value: str
    status: str = "info"


@hookspec
def ds_config_sections() -> Iterable[ConfigSection]:  # type: ignore[empty-body]
    """Config sections this plugin owns. Called once, at the first config read, on every rank."""


@hookspec
def ds_accelerators() -> Iterable[AcceleratorEntry]:  # type: ignore[empty-body]
    """Accelerators this plugin brings. Called once; each is probed at first need, on every rank."""


@hookspec
def ds_ops() -> Iterable[OpImpl]:  # type: ignore[empty-body]
    """Op implementations. Called once, on every rank; each is loaded at its first use."""


@hookspec
def ds_comm_backends() -> Iterable[CommBackendEntry]:  # type: ignore[empty-body]
    """Collective backends. Called once, before the first process group is made, on every rank."""


@hookspec
def ds_optimizers() -> Iterable[OptimizerEntry]:  # type: ignore[empty-body]
    """Optimizers by name. Called once, while the first engine is built, on every rank."""


@hookspec
def ds_schedulers() -> Iterable[SchedulerEntry]:  # type: ignore[empty-body]
    """Learning-rate schedules by name. Called once, while the first engine is built, on every rank."""


@hookspec
def ds_mesh_axes(config: Config, model: torch.nn.Module | None) -> Iterable[AxisRequest]:  # type: ignore[empty-body]
    """Mesh axes this config needs from this plugin. Called once per engine, on every rank, with equal answers.

    `model` is the one the engine is built for, since hook API 1.3; None where a config is read without one.
    """


@hookspec
def ds_transforms(build: Build) -> Iterable[TransformEntry]:  # type: ignore[empty-body]
    """Model transforms for this engine. Called once per engine, on every rank."""


@hookspec
def ds_shares(config: Config, model: torch.nn.Module, mesh: MeshPlan, rank: int) -> Iterable[Share]:  # type: ignore[empty-body]
    """What `rank` of a job would keep, after the transforms, of parameters that this plugin has ranks divide.

    Called by what plans a job before any rank is started, in one process; parameters that nobody names are kept whole.
    Must not communicate, nor read values, for the model may have none, nor change the model. Since hook API 1.4.
    """


@hookspec
def ds_parts(build: Build) -> Iterable[Part]:  # type: ignore[empty-body]
    """Engine parts for this engine. Called once per engine, on every rank, after transforms."""


@hookspec
def ds_runner(build: Build) -> Runner | None:
    """What turns micro-batches into gradients. Called once per engine, on every rank; at most one plugin answers."""


@hookspec
def ds_monitors() -> Iterable[MonitorEntry]:  # type: ignore[empty-body]
    """Metric sinks. Called once per engine, on the ranks that write metrics."""


@hookspec
def ds_launchers() -> Iterable[LauncherEntry]:  # type: ignore[empty-body]
    """Multi-machine launchers. Called by ``ds run``, in the launching process only."""


@hookspec
def ds_checkpoint_formats() -> Iterable[CheckpointFormatEntry]:  # type: ignore[empty-body]
    """Checkpoint formats that can be read. Called once, when the first checkpoint is opened, on every rank."""


@hookspec
def ds_commands() -> Iterable[CommandEntry]:  # type: ignore[empty-body]
    """Subcommands of ``ds``. Called by the command line, in its process only; must not import torch."""


@hookspec
def ds_report() -> Iterable[ReportRow]:  # type: ignore[empty-body]
    """Rows for ``ds report``. Called by the command line, in its process only; may import torch."""
