"""Accumulation: scales each micro-batch's loss and says which micro-batch ends the step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ds_core.errors import CheckpointError, EngineError
from ds_core.part import Part, Update
from ds_core.state import StateReader

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.config import Batch

__all__ = ["Accumulation"]


class Accumulation(Part):
    """Counts micro-batches between updates."""

    name = "accumulation"
    after = ("weights",)

    def __init__(self) -> None:
        self.steps: int = 1
        self.managed: bool = True
        self.taken: int = 0
        self._override: bool | None = None
        self._no_sync = False
        self._coalescing = False
        self._scale_next = True

    def prepare(self, build: Build) -> None:
        """Takes the number of micro-batches from the resolved batch."""
        self.steps = build.config.batch.accumulation_steps
        self.managed = build.config.training.managed_gradient_accumulation

    def loss_factor(self) -> float:
        """1 / micro-batches per step, unless this backward was asked not to scale."""
        return 1.0 / self.steps if self._scale_next and self.steps > 1 else 1.0

    def scale_losses(self, scale: bool) -> None:
        """Whether following losses are divided by the number of micro-batches."""
        self._scale_next = scale

    def is_boundary(self) -> bool:
        """True when the current micro-batch is the last before an update."""
        if self._override is not None:
            return self._override
        return not self.managed or self.taken + 1 >= self.steps

    def set_boundary(self, is_boundary: bool | None) -> None:
        """Overrides the boundary until it is set again; None hands it back to the count."""
        self._override = is_boundary

    def advance(self) -> bool:
        """Counts the micro-batch that ends now; True when an update is due.

        Raises:
            EngineError: called inside ``no_sync``.
        """
        if self._no_sync:
            raise EngineError("engine.step() was called inside engine.no_sync(); leave the context before stepping")
        due = self.is_boundary()
        self.taken = 0 if due else self.taken + 1
        return due

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """A context in which gradients stay local; nothing may step inside it."""
        if self._no_sync:
            raise EngineError("engine.no_sync() is not re-entrant; it is already active")
        self._no_sync = True
        try:
            yield
        finally:
            self._no_sync = False

    @contextmanager
    def coalesce(self) -> Iterator[None]:
        """A context for several backwards whose gradients are reduced together, later."""
        before, self._coalescing = self._coalescing, True
        try:
            yield
        finally:
            self._coalescing = before

    @property
    def is_held(self) -> bool:
        """True while gradients are to stay on this rank."""
        return self._no_sync or self._coalescing

    def batch_changed(self, batch: Batch) -> None:
        """Micro-batches per step from now on.

        Raises:
            EngineError: a step is half accumulated.
        """
        if self.taken:
            raise EngineError(
                f"the batch size cannot change after {self.taken} of {self.steps} micro-batches of a step; "
                "change it right after a boundary step"
            )
        self.steps = batch.accumulation_steps

    def before_save(self) -> None:
        """Refuses to save half a step.

        Raises:
            CheckpointError: micro-batches were accumulated that no update has used.
        """
        if self.taken:
            raise CheckpointError(
                f"{self.taken} of {self.steps} micro-batches of a step were accumulated, and their gradients are in no "
                "checkpoint: save after a step at the boundary (engine.is_gradient_accumulation_boundary() before it, "
                "engine.micro_steps a multiple of the accumulation steps after it)"
            )

    def load_state(self, reader: StateReader) -> None:
        """Begins a step; what was accumulated is forgotten."""
        self.taken = 0

    def after_update(self, update: Update) -> None:
        """Starts a new count."""
        self.taken = 0
