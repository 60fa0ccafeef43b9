"""The ``pipeline`` section."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from ds_core.config import Section
from ds_core.config.section import Refused

if TYPE_CHECKING:
    from ds_core.config import Config

__all__ = ["PipelineConfig", "stage_3_refusal"]


class PipelineConfig(Section):
    """Stages of a model on ranks of their own."""

    stages: Annotated[int, Field(ge=1)] | None = None
    """Pipe ranks; null: those of the PipelineModule, and 1 for other models."""
    partition: str | list[int] = "best"
    """How layers are divided: parameters, uniform, type:REGEX, profile, best, or a list of boundaries."""
    schedule: str = "1f1b"
    """A schedule by name, or a path of a text file with one."""
    stages_per_rank: Annotated[int, Field(ge=1)] | None = None
    """Stages each rank has; null: what the schedule is known for."""
    seed_layers: bool = False
    """Seed before each layer is made, so that weights do not depend on how layers are divided."""
    activation_checkpoint_interval: Annotated[int, Field(ge=0)] = 0
    """Layers that are run again in backward together; 0: none."""
    sample_length: Annotated[int, Field(ge=1)] | None = None
    """Tokens of a row to measure layers of a Hugging Face model with, for partition ``profile`` and ``best``."""
    dynamic_shape: bool = False
    """Activations may change their shapes from one micro-batch to the next; costs a message for each."""

    refused_keys: ClassVar[Mapping[str, str | Refused]] = {
        "pipe_partitioned": Refused("without a tensor axis there is nothing to divide; take it out", (True,)),
        "grad_partitioned": Refused("without a tensor axis there is nothing to divide; take it out", (True,)),
    }

    def check(self, config: Config) -> Iterable[str]:
        """Sharded parameters."""
        return [] if (self.stages or 1) == 1 else stage_3_refusal(config, self.stages or 1)


def stage_3_refusal(config: Config, ranks: int) -> list[str]:
    """Why parameters in pieces cannot go with a pipeline of that many ranks; empty when they are whole."""
    if config.get("zero_optimization.stage", 0) == 3:
        return [
            f"zero_optimization.stage 3 cannot be used with a pipeline of {ranks} stages (pipeline.stages): parameters "
            "would be gathered for every micro-batch anew; set zero_optimization.stage to 2, 1 or 0"
        ]
    if config.get("zero_optimization.offload_param.device", "none") != "none":
        return [
            f"zero_optimization.offload_param cannot be used with a pipeline of {ranks} stages (pipeline.stages): take "
            "it out, or offload optimizer states with zero_optimization.offload_optimizer"
        ]
    return []
