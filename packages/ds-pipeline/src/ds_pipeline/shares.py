"""Which parameters a pipe rank would keep, for plans that start none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import nn

from ds_core.errors import ConfigError
from ds_core.hooks import Share
from ds_pipeline.config import stage_3_refusal
from ds_pipeline.hugging_face import plan_of, ranks_of_parameters
from ds_pipeline.module import PipelineModule
from ds_pipeline.runtime.choose import placement

if TYPE_CHECKING:
    from ds_core.config import Config
    from ds_pipeline.config import PipelineConfig

__all__ = ["shares_of"]


def shares_of(config: Config, model: nn.Module, ranks: int, place: int) -> Iterable[Share]:
    """Shares of the pipe rank `place` of `ranks`, where not every rank keeps a parameter.

    Raises:
        ConfigError: parameters in pieces (zero_optimization.stage 3), as in a run.
        ModelError, PartitionError: the model cannot be divided as asked.
    """
    section: PipelineConfig = config["pipeline"]
    for problem in stage_3_refusal(config, ranks):
        raise ConfigError(problem)
    placed = placement(section.schedule, ranks=ranks, stages_per_rank=section.stages_per_rank)
    if isinstance(model, PipelineModule):
        found = model.plan_ranks(placed, section.partition if config.is_set("pipeline.partition") else None)
    else:
        found = ranks_of_parameters(model, *plan_of(model, placed, section.partition), placed)
    for name, parameter in model.named_parameters():
        users = sorted(found.get(id(parameter), range(ranks)))
        yield Share(name, is_kept=place in users, shared={"pipe": users} if len(users) > 1 else {})
