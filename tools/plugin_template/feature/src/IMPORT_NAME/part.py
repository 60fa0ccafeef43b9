"""The engine part: it leaves out a step whose gradient norm exceeds a limit. Replace it with what yours does."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ds_core.part import Part, Update

if TYPE_CHECKING:
    from {{import}}.config import {{class}}Config

__all__ = ["{{class}}"]

logger = logging.getLogger(__name__)


class {{class}}(Part):
    """Vetoes a step whose global gradient norm is above ``max_norm``; the norm is the same on all ranks."""

    name = "{{short}}"
    after = ("gradient_norm",)

    def __init__(self, section: {{class}}Config) -> None:
        self._max_norm = section.max_norm
        self.skipped_steps = 0

    def before_update(self, update: Update) -> None:
        """Leaves the parameters as they are when the norm is too large."""
        if update.grad_norm is None or update.grad_norm <= self._max_norm:
            return
        self.skipped_steps += 1
        update.skip(f"gradient norm {update.grad_norm:.3g} exceeds {{key}}.max_norm {self._max_norm:.3g}")
        logger.info("step %d left out: gradient norm %.3g", update.step, update.grad_norm)
