"""`Pipeline`: what users call on the engine of a model in stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ds_core.data import RepeatingLoader
from ds_core.part import Part
from ds_pipeline.topology import PipeDataParallelTopology, PipelineParallelGrid

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_pipeline.runtime import PipelineRunner
    from ds_pipeline.stage import Stages

__all__ = ["Pipeline"]


class Pipeline(Part):
    """Adds the familiar methods of a pipeline's engine."""

    name = "pipeline"

    def __init__(self) -> None:
        self._build: Build | None = None
        self._grid: PipelineParallelGrid | None = None

    def prepare(self, build: Build) -> None:
        """Remembers the build, whose runner is made later, and names the groups of the mesh by the grid's names."""
        self._build = build
        mesh = build.mesh
        topology = PipeDataParallelTopology(num_pp=mesh.size("pipe"), num_dp=mesh.size(*mesh.batch_axes))
        if topology.world_size() != mesh.plan.world_size:  # other axes divide layers: their wheel has a grid of its own
            return
        pipe, data, alone = mesh.group("pipe"), mesh.group(*mesh.batch_axes), mesh.group("self")
        groups = {"pipe": pipe, "model": pipe, "data": data, "slice": alone}
        self._grid = PipelineParallelGrid(topology, groups=groups)

    def engine_values(self) -> Mapping[str, Callable[[], Any]]:
        """``grid``."""
        return {"grid": lambda: self._grid}

    @property
    def _runner(self) -> PipelineRunner:
        assert self._build is not None
        runner: Any = self._build.runner
        return runner  # type: ignore[no-any-return]

    @property
    def _stages(self) -> Stages:
        assert self._build is not None
        module: Any = self._build.module
        return module.stages  # type: ignore[no-any-return]

    def engine_methods(self) -> Mapping[str, Callable[..., Any]]:
        """See each."""
        return {
            "set_dataloader": self.set_dataloader,
            "set_dataiterator": self.set_dataiterator,
            "set_batch_fn": self.set_batch_fn,
            "set_has_attention_mask": self.set_has_attention_mask,
            "reset_activation_shape": self.reset_activation_shape,
            "is_first_stage": self.is_first_stage,
            "is_last_stage": self.is_last_stage,
            "get_pipeline_parallel_rank": self.get_pipeline_parallel_rank,
        }

    def set_dataloader(self, loader: Iterable[Any]) -> None:
        """Batches come from `loader`, over and over, when ``train_batch`` and ``eval_batch`` are given none."""
        self._runner.iterator = iter(RepeatingLoader(loader))

    def set_dataiterator(self, iterator: Iterator[Any]) -> None:
        """Batches come from `iterator` when ``train_batch`` and ``eval_batch`` are given none."""
        self._runner.iterator = iterator

    def set_batch_fn(self, fn: Callable[[Any], Any] | None) -> None:
        """`fn` changes every batch before it is divided into inputs and labels."""
        self._runner.batch_fn = fn

    def set_has_attention_mask(self, value: bool) -> None:
        """Nothing to say: tensors without gradients, such as masks, are sent as they are."""

    def reset_activation_shape(self) -> None:
        """Activations may have other shapes from the next batch on. Call on all ranks."""
        self._runner.forget_shapes()

    def is_first_stage(self) -> bool:
        """Whether this rank has the stage that takes the data."""
        return self._stages.has_first

    def is_last_stage(self) -> bool:
        """Whether this rank has the stage with the loss."""
        return self._stages.has_last

    def get_pipeline_parallel_rank(self) -> int:
        """This rank's place along the pipe axis."""
        return self._stages.rank
