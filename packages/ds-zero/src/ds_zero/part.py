"""The ZeRO parts: a sharded space in the place of the replicated one, and the check on unused parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.errors import EngineError
from ds_core.part import Part, Update
from ds_core.units import plan_units
from ds_zero.space import ShardedSpace

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_core.space import UpdateSpace

__all__ = ["UnusedCheck", "Zero"]


class Zero(Part):
    """Prepared after precision and before the weights are laid out; the rest of the engine does not know it exists."""

    name = "zero"
    after = ("precision",)
    before = ("weights",)

    def prepare(self, build: Build) -> None:
        """Sets ``build.space`` at stage 1; at stage 0 only the bucket size."""
        config = build.config["zero_optimization"]
        build.units = plan_units(build.module, small_numel=100_000)
        build.space_policy = build.space_policy._replace(
            bucket_numel=min(config.reduce_bucket_size, config.allgather_bucket_size),
            every_backward=config.stage >= 2,
        )
        if config.stage == 0 or not build.parameters:
            return
        space = ShardedSpace(build.parameters, **build.space_arguments())
        space.use_reduce_scatter = config.reduce_scatter
        build.space = space


class UnusedCheck(Part):
    """Makes a step in which a parameter has no gradient on any rank an error; ``ignore_unused_parameters`` false."""

    name = "zero_unused"
    after = ("gradient_norm",)
    before = ("optimizer",)

    def __init__(self) -> None:
        self._space: UpdateSpace | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the space."""
        self._space = build.space

    def before_update(self, update: Update) -> None:
        """Looks at which parameters the ranks used.

        Raises:
            EngineError: on all ranks, with the names of the unused parameters.
        """
        if self._space is None or update.used is None:
            return
        unused = [
            slot.name
            for flat, used in zip(self._space.flats, update.used, strict=True)
            for slot, is_used in zip(flat.layout.slots, used, strict=True)
            if not is_used
        ]
        if unused:
            raise EngineError(
                f"step {update.step}: {len(unused)} parameters received no gradient on any rank, first {unused[0]!r}; "
                "freeze them with requires_grad_(False), or set zero_optimization.ignore_unused_parameters to true"
            )
