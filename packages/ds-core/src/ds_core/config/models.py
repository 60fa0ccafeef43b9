"""Config sections of ds-core: optimizer, scheduler, monitors, timers, logging of collectives, checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ds_core.config.catalog import names
from ds_core.config.section import Refused, Section, case_insensitive
from ds_core.errors import ConfigError
from ds_core.signals import parse_signals

if TYPE_CHECKING:
    from ds_core.config.config import Config

__all__ = [
    "CheckpointSection",
    "CommsLoggerSection",
    "JsonlMonitorSection",
    "OnSignalSection",
    "OptimizerSection",
    "SchedulerSection",
    "TensorboardSection",
    "ThroughputTimerSection",
    "TimersSection",
]

_JOB_NAME = "DeepSpeedJobName"


class OptimizerSection(Section):
    """The optimizer, by name."""

    type: Annotated[str, Field(min_length=1)] | None = None
    """Name of the optimizer, in any case: one a wheel brings, or a class of torch.optim."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the optimizer, for example lr, betas, eps, weight_decay."""

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "legacy_fusion": "there is one fused optimizer step here, not an old and a new one; take it out",
    }

    def check(self, config: Config) -> Iterable[str]:
        """Arguments have an optimizer, and clipping is not an optimizer's argument."""
        if self.type is None and self.params:
            yield "optimizer.params is set and optimizer.type is not; name an optimizer, for example AdamW"
        if "max_grad_norm" in self.params:
            yield (
                f"optimizer.params.max_grad_norm is not an argument of the optimizer; set gradient_clipping to"
                f" {self.params['max_grad_norm']} at the top level"
            )


class SchedulerSection(Section):
    """The learning-rate schedule, by name."""

    type: Annotated[str, Field(min_length=1)] | None = None
    """Name of the schedule: one a wheel brings, or a class of torch.optim.lr_scheduler."""
    params: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the schedule."""

    def check(self, config: Config) -> Iterable[str]:
        """Arguments have a schedule."""
        if self.type is None and self.params:
            yield "scheduler.params is set and scheduler.type is not; name a schedule, for example WarmupLR"


class CommsLoggerSection(Section):
    """Logging of collectives."""

    enabled: bool = False
    """Count and time collectives."""
    verbose: bool = False
    """Log each collective when it completes."""
    prof_all: bool = True
    """Record every collective; false records those in `prof_ops`."""
    debug: bool = False
    """Record the function that called each collective."""
    prof_ops: list[str] = Field(default_factory=list)
    """Collectives to record, by name, when `prof_all` is false."""


class TensorboardSection(Section):
    """Metrics to TensorBoard."""

    enabled: bool = False
    """Write metrics."""
    output_path: str = ""
    """Folder to write below; ``runs`` in the working folder when empty."""
    job_name: str = _JOB_NAME
    """Folder of this job."""


class JsonlMonitorSection(Section):
    """Metrics to a file of one JSON object a line."""

    enabled: bool = False
    """Write metrics."""
    output_path: str = ""
    """Folder to write below; ``runs`` in the working folder when empty."""
    job_name: str = _JOB_NAME
    """Folder of this job."""


class ThroughputTimerSection(Section):
    """Samples per second."""

    enabled: bool = True
    """Measure throughput."""
    synchronized: bool = True
    """Wait for the device before the clock is read."""


class TimersSection(Section):
    """Timers of the engine."""

    throughput: ThroughputTimerSection = Field(default_factory=ThroughputTimerSection)
    """The throughput timer."""


class OnSignalSection(Section):
    """Saving when a signal arrives, from a scheduler that is about to end the job or from you."""

    folder: Path | None = None
    """Where to save; null watches no signal."""
    stop: list[str] = Field(default_factory=lambda: ["SIGTERM"])
    """Signals after which all ranks save and stop: the step raises `Preempted`."""
    go_on: list[str] = Field(default_factory=lambda: ["SIGUSR1"])
    """Signals after which all ranks save and go on."""


_SHARDED = "every checkpoint here is saved in shards that load at any world size, stage and mesh"


class CheckpointSection(Section):
    """Saving and loading."""

    tag_validation: Annotated[
        Literal["Ignore", "Warn", "Fail"], BeforeValidator(case_insensitive("Ignore", "Warn", "Fail"))
    ] = "Warn"
    """What to do when ranks save under different tags."""
    asynchronous: bool = True
    """Return from saving when the state is copied to host memory, and write it while training goes on."""
    snapshot_limit_bytes: Annotated[int, Field(ge=1)] | None = None
    """Host memory a rank may use for that copy, in bytes; what does not fit is written before saving returns. Null:
    half of the memory that is available to it."""
    keep_snapshot_memory: bool = True
    """Keep the memory of the copy for the next save, which is then much shorter."""
    verify: bool = True
    """Check the hashes of all bytes before a checkpoint is loaded."""
    keep_last: Annotated[int, Field(ge=1)] | None = None
    """Checkpoints to keep; older complete ones are deleted. All when null."""
    keep_every: Annotated[int, Field(ge=1)] | None = None
    """Keep those as well whose number of steps is a multiple of this. None when null."""
    on_signal: OnSignalSection = Field(default_factory=OnSignalSection)
    """What to save when a signal arrives."""

    def check(self, config: Config) -> Iterable[str]:
        """Signals exist and do one thing each."""
        try:
            parse_signals(self.on_signal.stop, self.on_signal.go_on, "checkpoint.on_signal.")
        except ConfigError as error:
            yield str(error)

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "load_universal": f"{_SHARDED}, so there is no universal format to ask for; take it out",
        "use_node_local_storage": "a checkpoint is one folder that all ranks reach, nothing collects folders of nodes;"
        " save to a shared folder",
        "parallel_write": Refused(
            "every rank always writes its own share, those of pipeline stages too; take it out",
            (True,),
            keys=names("pipeline_stage"),
        ),
        "checkpoint_serialization": Refused(
            "tensors are written as safetensors, never through torch.save; take it out", idle=(True,)
        ),
        "writer": Refused(
            "there is one writer, asynchronous (checkpoint.asynchronous) and past the page cache; take it out",
            keys=names("type decoupled io_buffer_size io_buffer_double show_statistics data_parallel io_multiplier"),
        ),
    }
