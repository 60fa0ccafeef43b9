"""Core's own contributions, registered through the same door as any wheel's."""

from __future__ import annotations

from collections.abc import Iterable

from ds_core.hooks import (
    AcceleratorEntry,
    Availability,
    CheckpointFormatEntry,
    CommandEntry,
    ConfigSection,
    LauncherEntry,
    MonitorEntry,
    OptimizerEntry,
    SchedulerEntry,
    hookimpl,
)

DS_HOOK_API = (1, 1)


def _always() -> Availability:
    return Availability(usable=True, reason="the host processor is always there", device_count=1)


@hookimpl
def ds_config_sections() -> Iterable[ConfigSection]:
    from ds_core.config.sections import SECTIONS

    return SECTIONS


@hookimpl
def ds_accelerators() -> Iterable[AcceleratorEntry]:
    return [
        AcceleratorEntry(
            name="reference",
            is_available=_always,
            factory="ds_core.accelerator.host:HostAccelerator",
            priority=0,
            is_floor=True,
            impersonates=("cpu",),
        )
    ]


@hookimpl
def ds_optimizers() -> Iterable[OptimizerEntry]:
    from ds_core.optim.registry import ENTRIES

    return ENTRIES


@hookimpl
def ds_schedulers() -> Iterable[SchedulerEntry]:
    from ds_core.schedules.registry import ENTRIES

    return ENTRIES


@hookimpl
def ds_monitors() -> Iterable[MonitorEntry]:
    from ds_core.monitors.registry import ENTRIES

    return ENTRIES


@hookimpl
def ds_launchers() -> Iterable[LauncherEntry]:
    from ds_core.launch.registry import ENTRIES

    return ENTRIES


@hookimpl
def ds_checkpoint_formats() -> Iterable[CheckpointFormatEntry]:
    return [
        CheckpointFormatEntry(
            "ds",
            "ds_core.checkpoint.native:detect",
            "ds_core.checkpoint.native:open_native",
            "<tag>/manifest.json, the tag given or in the file latest",
            specificity=110,  # asked first, it says what is wrong with a file latest among checkpoints of its own
        ),
        CheckpointFormatEntry(
            "deepspeed",
            "ds_core.checkpoint.foreign.deepspeed_zero:detect",
            "ds_core.checkpoint.foreign.deepspeed_zero:open_zero",
            "<tag>/*mp_rank_00_model_states.pt, the tag given or in the file latest",
        ),
        CheckpointFormatEntry(
            "deepspeed-universal",
            "ds_core.checkpoint.foreign.deepspeed_universal:detect",
            "ds_core.checkpoint.foreign.deepspeed_universal:open_universal",
            "<tag>/zero, the tag given or in the file latest_universal",
            specificity=90,
        ),
        CheckpointFormatEntry(
            "torch-dcp",
            "ds_core.checkpoint.foreign.torch_dcp:detect",
            "ds_core.checkpoint.foreign.torch_dcp:open_dcp",
            ".metadata of torch.distributed.checkpoint",
            specificity=80,
        ),
        CheckpointFormatEntry(
            "huggingface",
            "ds_core.checkpoint.foreign.huggingface:detect",
            "ds_core.checkpoint.foreign.huggingface:open_weights",
            "*.safetensors or pytorch_model*.bin",
            specificity=10,
        ),
    ]


@hookimpl
def ds_commands() -> Iterable[CommandEntry]:
    return [
        CommandEntry("accel", "ds_core.cli.accel:app", "List devices, test one against the contract."),
        CommandEntry(
            "checkpoint", "ds_core.cli.checkpoint:app", "List, check, convert, compare and delete checkpoints."
        ),
        CommandEntry("config", "ds_core.cli.config:app", "Check a config file, say where each value comes from."),
        CommandEntry("io", "ds_core.cli.io:app", "Measure a disk as offload uses it, find its best settings."),
        CommandEntry("migrate", "ds_core.cli.migrate:command", "Rewrite a config of DeepSpeed, with remarks."),
        CommandEntry("ops", "ds_core.cli.ops:command", "List the ops by device, native or reference."),
        CommandEntry("plugins", "ds_core.cli.plugins:app", "List the installed plugins, say what is wrong with one."),
        CommandEntry("report", "ds_core.cli.report:command", "Report versions, wheels, accelerators and settings."),
        CommandEntry("run", "ds_core.cli.run:command", "Start a training script on the ranks of one or more machines."),
    ]
