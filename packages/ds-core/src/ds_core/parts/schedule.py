"""Schedule: advances the learning rate after every applied update."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from ds_core.errors import CheckpointError, ModelError
from ds_core.part import Part, Update
from ds_core.schedules import create
from ds_core.state import StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["Schedule"]

logger = logging.getLogger(__name__)


class Schedule(Part):
    """Holds the learning-rate schedule, a configured one or the caller's."""

    name = "schedule"
    after = ("optimizer",)
    state_kind = "schedule"

    def __init__(self) -> None:
        self.scheduler: Any = None

    def prepare(self, build: Build) -> None:
        """Makes or adopts the schedule.

        Raises:
            ModelError: a schedule without an optimizer to drive.
        """
        section, given = build.config["scheduler"], build.lr_scheduler
        if given is None and section.type is None:
            return
        if build.optimizer is None:
            raise ModelError("a learning-rate schedule needs an optimizer; set optimizer.type or pass optimizer=")
        if given is None:
            self.scheduler = create(section.type, build.optimizer, dict(section.params))
        elif callable(given) and not callable(getattr(given, "step", None)):
            self.scheduler = given(build.optimizer)
        else:
            self.scheduler = given
        build.lr_scheduler = self.scheduler

    def after_update(self, update: Update) -> None:
        """Steps unless the update was skipped."""
        if self.scheduler is not None and update.skip_reason is None:
            self.scheduler.step(**(update.lr_kwargs or {}))

    def state_plan(self) -> StatePlan | None:
        """The schedule's state_dict."""
        if self.scheduler is None:
            return None
        values = {"lr_scheduler": _plain(self.scheduler.state_dict())}
        return StatePlan(values={**values, "lr_scheduler_type": type(self.scheduler).__name__})

    def check_state(self, reader: StateReader) -> None:
        """Refuses the state of another schedule.

        Raises:
            CheckpointError: names both.
        """
        own, saved = type(self.scheduler).__name__, reader.value("lr_scheduler_type")
        if self.scheduler is not None and saved not in (None, own):
            raise CheckpointError(
                f"the checkpoint's schedule is {saved}, this engine's is {own}; use the same, or pass "
                "load_lr_scheduler_states=False"
            )

    def load_state(self, reader: StateReader) -> None:
        """Restores the schedule, where the checkpoint has one."""
        state = reader.value("lr_scheduler")
        if self.scheduler is not None and state is not None:
            self.scheduler.load_state_dict(state)
        elif self.scheduler is not None:
            logger.warning("the checkpoint has no learning-rate schedule; this engine's begins anew")


def _plain(value: Any) -> Any:
    """JSON-able copy; what cannot be kept (functions of LambdaLR) is left out, as torch leaves it out."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items() if not callable(v)}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return float(value) if hasattr(value, "item") else str(value)
