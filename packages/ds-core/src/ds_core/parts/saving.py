"""Saving: owns the engine's checkpoint writer, and tells the training loop when a write in the background failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ds_core.checkpoint.manifest import BLOCK_BYTES
from ds_core.checkpoint.retention import Retention
from ds_core.checkpoint.save import SaveOptions, Saver
from ds_core.part import Part

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.engine_api import EngineApi

__all__ = ["Saving"]


class Saving(Part):
    """Tells of a failed write when a step is complete, so that nothing is lost by who catches the error and goes on.

    Ranks may tell it a step apart. It comes last, when all that ranks do together at the end of a step is done.
    """

    name = "saving"
    after = ("preemption",)

    def __init__(self) -> None:
        self.saver: Saver = Saver(SaveOptions())

    def prepare(self, build: Build) -> None:
        """Makes the writer that the ``checkpoint`` section describes."""
        section, accelerator = build.config["checkpoint"], build.accelerator

        def page_locked() -> torch.Tensor:
            return accelerator.pin(torch.empty(BLOCK_BYTES, dtype=torch.uint8))

        self.saver = Saver(
            SaveOptions(
                asynchronous=section.asynchronous,
                snapshot_limit_bytes=section.snapshot_limit_bytes,
                keep_snapshot_memory=section.keep_snapshot_memory,
                tag_validation=section.tag_validation,
                retention=Retention(section.keep_last, section.keep_every),
            ),
            make_block=None if accelerator.device_type == "cpu" else page_locked,
        )

    def after_step(self, engine: EngineApi) -> None:
        """Raises what the last save failed with, once; training may go on afterwards."""
        self.saver.check()

    def close(self) -> None:
        """Waits for the last save, and raises what it failed with."""
        self.saver.wait()
