"""Gradient norm: one global L2 norm, the clip coefficient from it, and the veto on what is not finite."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from ds_core import ops
from ds_core.errors import NonFiniteError
from ds_core.part import Part, Update

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.space import UpdateSpace

__all__ = ["CLIP_EPSILON", "NON_FINITE_LIMIT", "GradientNorm"]

CLIP_EPSILON = 1e-6
"""Added to the norm in the clip coefficient, as torch.nn.utils.clip_grad_norm_ does."""

NON_FINITE_LIMIT = 50
"""Steps in a row with NaN or infinite gradients after which training is stopped."""

logger = logging.getLogger(__name__)


class GradientNorm(Part):
    """Every rank adds up the squares of its share; shares are added in rank order, so all ranks agree to the bit."""

    name = "gradient_norm"
    after = ("reduction", "loss_scale")

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None
        self._max_norm = 0.0
        self._check = True
        self._non_finite = 0
        self._rank = 0
        self.last: float | None = None

    def prepare(self, build: Build) -> None:
        """Takes the clip limit."""
        self._space = build.space
        self._max_norm = build.config.training.gradient_clipping
        bf16 = build.config["bf16"]
        self._check = not bf16.enabled or bf16.check_grad_overflow
        self._rank = build.mesh.rank(*build.mesh.batch_axes)

    def before_update(self, update: Update) -> None:
        """Measures, clips, vetoes.

        Raises:
            NonFiniteError: gradients were not finite `NON_FINITE_LIMIT` steps in a row.
        """
        space = self._space
        if space is None:
            return
        partial = 0.0
        for flat in space.flats:
            for part in space.measured(flat):
                partial += float(ops.sum_of_squares(flat.grads(part)))
        total, update.used = space.sum_over_ranks(partial, [flat.gradients.used for flat in space.flats])
        norm = math.sqrt(total) * update.grad_factor if total >= 0 else math.nan
        self.last = update.grad_norm = norm
        if not math.isfinite(norm) and self._check:
            self._veto(update)
            return
        self._non_finite = 0
        if self._max_norm > 0:
            coefficient = self._max_norm / (norm + CLIP_EPSILON)
            if coefficient < 1.0:
                update.grad_factor *= coefficient

    def _veto(self, update: Update) -> None:
        update.skip("gradients are not finite")
        self._non_finite += 1
        assert self._space is not None
        if self._non_finite == 1 or self._non_finite >= NON_FINITE_LIMIT:
            culprits = first_non_finite(self._space)
            where = f"; on rank {self._rank} first in {culprits}" if culprits else ""
            message = f"step {update.step}: gradient norm is {update.grad_norm}, parameters were left unchanged{where}"
            if self._non_finite >= NON_FINITE_LIMIT:
                raise NonFiniteError(
                    f"{message}. It is the {self._non_finite}th such step in a row; lower optimizer.params.lr, "
                    "look at the data, or use bf16 or fp32 instead of fp16"
                )
            logger.warning("%s", message)


def first_non_finite(space: UpdateSpace, limit: int = 3) -> str:
    """Names of the first few parameters with NaN or infinity in this rank's share of their gradients."""
    found = []
    for flat in space.flats:
        for index, part in flat.layout.fragments(space.measured(flat)):
            if not bool(flat.grads(part).isfinite().all()):
                found.append(flat.layout.slots[index].name)
                if len(found) == limit:
                    return ", ".join(found)
    return ", ".join(found)
