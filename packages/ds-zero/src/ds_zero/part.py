"""The ZeRO part: puts a sharded space in the place of the replicated one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ds_core.part import Part

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["Zero"]


class Zero(Part):
    """Prepared after precision and before the weights are laid out; the rest of the engine does not know it exists."""

    name = "zero"
    after = ("precision",)
    before = ("weights",)

    def prepare(self, build: Build) -> None:
        """Sets ``build.space`` at stage 1."""
        from ds_zero.space import ShardedSpace

        config = build.config["zero_optimization"]
        bucket_numel = min(config.reduce_bucket_size, config.allgather_bucket_size)
        build.space_policy = build.space_policy._replace(bucket_numel=bucket_numel)
        if config.stage == 0 or not build.parameters:
            return
        space = ShardedSpace(build.parameters, **build.space_arguments())
        space.use_reduce_scatter = config.reduce_scatter
        build.space = space
