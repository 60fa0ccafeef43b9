"""The config sections ``offload_optimizer`` and ``offload_param`` of ``zero_optimization``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ds_core.config import Section
from ds_core.config.section import Refused, case_insensitive

__all__ = ["OffloadOptimizer", "OffloadParam", "problems"]

Positive = Annotated[int, Field(ge=1)]
Device = Annotated[Literal["none", "cpu", "nvme"], BeforeValidator(case_insensitive("none", "cpu", "nvme"))]


class OffloadOptimizer(Section):
    """Where master weights, optimizer states and gradients between backwards live, and so where updates are made."""

    device: Device = "none"
    """none: the device; cpu: host memory; nvme: files, brought to host memory a tile at a time."""
    nvme_path: Path | None = None
    """An existing folder on a local disk, for device nvme."""
    buffer_count: Positive = 4
    """Tiles in memory at most, for device nvme; see sub_group_size for their size."""
    pin_memory: bool = True
    """Page-lock host memory, where the device gains by it."""
    pipeline_read: bool = False
    """Read the next tile while one is updated."""
    pipeline_write: bool = False
    """Write a tile while the next is updated."""
    fast_init: bool = False
    """Do not write states that are zero when training starts; they are made when their tile is first read."""
    ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the elements that live off the device; the device keeps and updates the others."""

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "super_offload": "SuperOffload is not in this version of ds-zero; take it out",
        "cpuadam_cores_perc": Refused("it belongs to SuperOffload, which ds-zero does not have yet; take it out"),
    }


class OffloadParam(Section):
    """Where this rank's shards of the parameters live at stage 3."""

    device: Device = "none"
    """none: the device; cpu: host memory; nvme: files."""
    nvme_path: Path | None = None
    """An existing folder on a local disk, for device nvme."""
    buffer_count: Positive = 5
    """Shards on their way from files at most, for device nvme."""
    buffer_size: Positive = 100_000_000
    """Elements of the largest shard that a buffer takes, for device nvme."""
    max_in_cpu: Annotated[int, Field(ge=0)] = 1_000_000_000
    """Elements of shards that stay in host memory all the same, for device nvme."""
    pin_memory: bool = True
    """Page-lock host memory, where the device gains by it."""


def problems(stage: int, optimizer: OffloadOptimizer, param: OffloadParam) -> Iterable[str]:
    """What cannot be used together."""
    for key, section in (("offload_optimizer", optimizer), ("offload_param", param)):
        if section.device == "nvme" and section.nvme_path is None:
            yield (
                f"zero_optimization.{key}.device is nvme and zero_optimization.{key}.nvme_path is not set; name a"
                " folder on a local disk"
            )
    if param.device != "none" and stage != 3:
        yield (
            f"zero_optimization.offload_param.device {param.device} needs zero_optimization.stage 3, got {stage}; below"
            " that every rank works on whole parameters"
        )
    if optimizer.device != "none" and stage == 0:
        yield (
            f"zero_optimization.offload_optimizer.device {optimizer.device} needs zero_optimization.stage 1, 2 or 3,"
            " got 0; stage 1 on one rank has the same numbers"
        )
    # As ds_core.aio.pipeline.buffers_needed says; that module imports torch, without which configs are read.
    needed = 1 + optimizer.pipeline_read + optimizer.pipeline_write
    if optimizer.device == "nvme" and optimizer.buffer_count < needed:
        yield (
            f"zero_optimization.offload_optimizer.buffer_count must be at least {needed} with pipeline_read"
            f" {str(optimizer.pipeline_read).lower()} and pipeline_write {str(optimizer.pipeline_write).lower()}, got"
            f" {optimizer.buffer_count}"
        )
