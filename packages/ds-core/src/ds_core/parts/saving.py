"""Saving: owns the engine's checkpoint writer, and tells the training loop when a write in the background failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ds_core.part import Part

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.checkpoint import Saver
    from ds_core.engine_api import EngineApi

__all__ = ["Saving"]


class Saving(Part):
    """Tells of a failed write when a step is complete, so that nothing is lost by who catches the error and goes on.

    Ranks may tell it a step apart. It comes last, when all that ranks do together at the end of a step is done.
    """

    name = "saving"
    after = ("preemption",)

    def __init__(self) -> None:
        self._build: Build | None = None
        self._saver: Saver | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the build; the writer is made for the first save."""
        self._build = build

    @property
    def saver(self) -> Saver:
        """The writer that the ``checkpoint`` section describes."""
        if self._saver is None:
            assert self._build is not None, "the engine is being built"
            self._saver = _make_saver(self._build)
        return self._saver

    def after_step(self, engine: EngineApi) -> None:
        """Raises what the last save failed with, once; training may go on afterwards."""
        if self._saver is not None:
            self._saver.check()

    def close(self) -> None:
        """Waits for the last save, and raises what it failed with."""
        if self._saver is not None:
            self._saver.wait()


def _make_saver(build: Build) -> Saver:
    from ds_core.checkpoint import Retention, SaveOptions, Saver
    from ds_core.checkpoint.storage.manifest import BLOCK_BYTES

    section, accelerator = build.config["checkpoint"], build.accelerator

    def page_locked() -> torch.Tensor:
        return accelerator.pin(torch.empty(BLOCK_BYTES, dtype=torch.uint8))

    options = SaveOptions(
        asynchronous=section.asynchronous,
        snapshot_limit_bytes=section.snapshot_limit_bytes,
        keep_snapshot_memory=section.keep_snapshot_memory,
        tag_validation=section.tag_validation,
        retention=Retention(section.keep_last, section.keep_every),
    )
    return Saver(options, make_block=None if accelerator.device_type == "cpu" else page_locked)
