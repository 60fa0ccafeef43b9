"""Which stages this rank has, and what the runner asks of a module that is divided into stages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from ds_pipeline.partition import PartitionPlan

__all__ = ["Staged", "Stages", "is_staged"]


@dataclass(frozen=True, slots=True)
class Stages:
    """The pipe rank of every stage, and this rank among them.

    Attributes:
        rank_of_stage: by stage, in the order of the model.
        rank: this rank's place along the pipe axis.
    """

    rank_of_stage: tuple[int, ...]
    rank: int

    @property
    def count(self) -> int:
        """Number of stages of the model."""
        return len(self.rank_of_stage)

    @property
    def ranks(self) -> int:
        """Number of pipe ranks."""
        return max(self.rank_of_stage) + 1

    @property
    def last(self) -> int:
        """The stage with the loss."""
        return self.count - 1

    @property
    def local(self) -> tuple[int, ...]:
        """This rank's stages, in the order of the model."""
        return tuple(stage for stage, rank in enumerate(self.rank_of_stage) if rank == self.rank)

    @property
    def has_first(self) -> bool:
        """Whether this rank has the stage that takes the data."""
        return self.rank_of_stage[0] == self.rank

    @property
    def has_last(self) -> bool:
        """Whether this rank has the stage with the loss."""
        return self.rank_of_stage[-1] == self.rank

    @property
    def title(self) -> str:
        """``stage 2`` or ``stages 0 and 3``."""
        names = [str(stage) for stage in self.local]
        return f"stage {names[0]}" if len(names) == 1 else f"stages {', '.join(names[:-1])} and {names[-1]}"


def is_staged(module: object) -> bool:
    """Whether a module holds stages of a model."""
    return isinstance(getattr(module, "stages", None), Stages)


class Staged(Protocol):
    """A module that holds some stages of a model.

    Attributes:
        stages: which.
        plan: the layers of all stages.
        dynamic_shape: activations may differ in shape from micro-batch to micro-batch.
        recomputes: whether backward runs forward again, so that doing it in two parts would do so twice.
    """

    stages: Stages
    plan: PartitionPlan
    dynamic_shape: bool

    @property
    def recomputes(self) -> bool: ...

    def split_batch(self, batch: Any) -> tuple[Any, Any]:
        """What stage 0 takes, and what the loss is computed against."""

    def forward(self, inputs: Any, *, stage: int | None = None, targets: Any = None, with_loss: bool = False) -> Any:
        """Runs one stage of this rank.

        Args:
            inputs: what the stage before gave, or the first half of `split_batch`.
            stage: which; None is for modules in use without a pipeline.
            targets: second half of `split_batch`.
            with_loss: the last stage gives (loss, outputs) instead of its outputs.
        """
