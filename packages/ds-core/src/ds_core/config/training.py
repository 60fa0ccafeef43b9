"""The top-level scalars of a config, as one model: ``config.training.<name>``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from ds_core.config.section import DTypeName, Refused, Section, case_insensitive

if TYPE_CHECKING:
    from ds_core.config.config import Config

__all__ = ["TrainingSection"]

Positive = Annotated[int, Field(ge=1)]


def _never_when_infinite(value: Any) -> Any:
    return None if isinstance(value, float) and math.isinf(value) else value


class TrainingSection(Section):
    """Top-level scalars of a config."""

    train_batch_size: Positive | None = None
    """Samples per optimizer step over all ranks; micro-batch x accumulation x data-parallel ranks."""
    train_micro_batch_size_per_gpu: Positive | None = None
    """Samples per rank and forward pass."""
    gradient_accumulation_steps: Positive | None = None
    """Micro-batches per optimizer step; 1 unless the other two sizes imply more."""
    managed_gradient_accumulation: bool = True
    """Whether the engine finds the accumulation boundary itself; false leaves it to the caller."""
    steps_per_print: Annotated[Positive | None, BeforeValidator(_never_when_infinite)] = None
    """Optimizer steps between two progress lines; null or infinity prints none."""
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of all gradients together; 0 switches clipping off."""
    prescale_gradients: bool = False
    """Divide gradients by the number of ranks before they are reduced instead of after."""
    gradient_predivide_factor: Annotated[float, Field(gt=0)] = 1.0
    """Divide gradients by this before reducing, and by the rest after."""
    gradient_allreduce_op: Annotated[Literal["mean", "sum"], BeforeValidator(case_insensitive("mean", "sum"))] = "mean"
    """Whether gradients of ranks are averaged or summed."""
    communication_data_type: DTypeName | None = None
    """Type in which gradients are reduced; the gradients' own when null."""
    zero_allow_untested_optimizer: bool = False
    """Let ZeRO shard an optimizer that is not known to be element-wise."""
    zero_force_ds_cpu_optimizer: bool = True
    """Refuse a caller's own torch optimizer where ZeRO offloads its states; false runs it on the host."""
    dump_state: bool = False
    """Log the engine's composition and config once it is built."""
    wall_clock_breakdown: bool = False
    """Time forward, backward and step."""
    memory_breakdown: bool = False
    """Log memory around forward, backward and step."""
    dataloader_drop_last: bool = False
    """Drop the last incomplete batch."""
    log_level: (
        Annotated[
            Literal["debug", "info", "warning", "error", "critical"],
            BeforeValidator(case_insensitive("debug", "info", "warning", "error", "critical")),
        ]
        | None
    ) = None
    """Level of this package's loggers; left alone when null."""
    vocabulary_size: Positive | None = None
    """Size of the vocabulary; a warning says so when it is not a multiple of 8."""
    data_parallel_size: Positive | None = None
    """Data-parallel ranks the job must have; an error when the mesh leaves another number."""
    accelerator: Annotated[str, Field(min_length=1)] | None = None
    """Accelerator to use, by name; chosen by priority when null."""
    seed: Annotated[int, Field(ge=0)] | None = None
    """Seed of every random generator; left alone when null."""

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "disable_allgather": "it never did anything in DeepSpeed; take it out",
        "sparse_gradients": "nothing reduces sparse rows of embeddings yet, they are reduced dense; take it out",
        "graph_harvesting": "it captures the optimizer's norms in CUDA graphs, which no wheel does yet; take it out",
        "disable_python_gc": "nothing controls Python's garbage collector yet; call gc.disable() in the script",
    }

    def check(self, config: Config) -> Iterable[str]:
        """Scaling options that contradict each other."""
        if self.prescale_gradients and self.gradient_predivide_factor != 1.0:
            yield (
                f"gradient_predivide_factor {self.gradient_predivide_factor:g} does nothing with prescale_gradients"
                f" true, which divides by the number of ranks; set one of them"
            )
        if self.prescale_gradients and self.gradient_allreduce_op == "sum":
            yield (
                "prescale_gradients true divides gradients and gradient_allreduce_op sum keeps them undivided;"
                " set gradient_allreduce_op to mean, or prescale_gradients to false"
            )
