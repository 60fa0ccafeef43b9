"""Loss scale: static or dynamic, so that half-precision gradients do not vanish.

Source: Micikevicius et al., Mixed Precision Training (2018), section 3.2.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

from ds_core.errors import NonFiniteError
from ds_core.part import Part, Update
from ds_core.state import StatePlan, StateReader

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["DynamicLossScaler", "LossScale", "StaticLossScaler"]

logger = logging.getLogger(__name__)


class StaticLossScaler:
    """A fixed factor."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale: float = scale

    def update(self, overflow: bool) -> None:
        """Does nothing; the scale is fixed."""

    def state_dict(self) -> dict[str, Any]:
        """The scale."""
        return {"scale": self.scale}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the configured scale: a fixed factor is a setting, not a state."""


class DynamicLossScaler(StaticLossScaler):
    """Halves after `hysteresis` overflows, doubles after `window` clean steps.

    Args:
        scale: initial scale.
        window: clean steps between raises.
        hysteresis: overflows tolerated before the scale is lowered.
        consecutive_hysteresis: refill the tolerance at every clean step rather than at a raise.
        minimum: the scale never goes below this.
    """

    def __init__(
        self,
        scale: float,
        *,
        window: int = 1000,
        hysteresis: int = 2,
        consecutive_hysteresis: bool = False,
        minimum: float = 1.0,
    ) -> None:
        super().__init__(scale)
        self._window = window
        self._hysteresis = hysteresis
        self._consecutive = consecutive_hysteresis
        self._minimum = minimum
        self._tolerance = hysteresis
        self._clean_steps = 0

    def update(self, overflow: bool) -> None:
        """Adjusts after a step.

        Raises:
            NonFiniteError: an overflow although the scale is already at its minimum.
        """
        if overflow:
            self._clean_steps = 0
            if self._tolerance > 1:
                self._tolerance -= 1
                return
            if self.scale <= self._minimum:
                raise NonFiniteError(
                    f"gradients overflow although the loss scale is at its minimum, {self.scale:g} "
                    "(fp16.min_loss_scale); use bf16, lower optimizer.params.lr, or look at the data"
                )
            self.scale = max(self.scale / 2, self._minimum)
            return
        self._clean_steps += 1
        if self._consecutive:
            self._tolerance = self._hysteresis
        if self._clean_steps % self._window == 0:
            self._tolerance = self._hysteresis
            self.scale *= 2

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes between steps."""
        return {"scale": self.scale, "tolerance": self._tolerance, "clean_steps": self._clean_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up where another scaler left off."""
        self.scale = float(state["scale"])
        self._tolerance = int(state.get("tolerance", self._hysteresis))
        self._clean_steps = int(state.get("clean_steps", 0))


class LossScale(Part):
    """Multiplies losses by the scale and gradients by its inverse; active with fp16 only."""

    name = "loss_scale"
    after = ("reduction",)

    def __init__(self) -> None:
        self.scaler: StaticLossScaler = StaticLossScaler()
        self.overflow = False
        self._enabled = False

    def prepare(self, build: Build) -> None:
        """Makes the scaler that ``fp16`` describes."""
        fp16 = build.config["fp16"]
        self._enabled = fp16.enabled
        if not fp16.enabled:
            return
        if fp16.loss_scale:
            self.scaler = StaticLossScaler(float(fp16.loss_scale))
        else:
            self.scaler = DynamicLossScaler(
                2.0**fp16.initial_scale_power,
                window=fp16.loss_scale_window,
                hysteresis=fp16.hysteresis,
                consecutive_hysteresis=fp16.consecutive_hysteresis,
                minimum=fp16.min_loss_scale,
            )
        build.scaler = self.scaler

    def loss_factor(self) -> float:
        """The current scale."""
        return self.scaler.scale

    def before_update(self, update: Update) -> None:
        """Undoes the scale."""
        update.grad_factor /= self.scaler.scale

    def after_update(self, update: Update) -> None:
        """Adjusts the scale to whether this step overflowed."""
        if not self._enabled:
            return
        self.overflow = update.grad_norm is not None and not math.isfinite(update.grad_norm)
        before = self.scaler.scale
        self.scaler.update(self.overflow)
        if self.scaler.scale != before:
            logger.info("step %d: loss scale %g -> %g", update.step, before, self.scaler.scale)

    def state_plan(self) -> StatePlan | None:
        """The scaler's state."""
        return StatePlan(values={"loss_scale": self.scaler.state_dict()}) if self._enabled else None

    def load_state(self, reader: StateReader) -> None:
        """Takes the scaler's state back, where the checkpoint has one."""
        state = reader.value("loss_scale")
        if self._enabled and state is not None:
            self.scaler.load_state_dict(state)
