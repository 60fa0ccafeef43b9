"""The transform: experts of Hugging Face models get our forward, and each rank keeps the slice of its experts.

Everything else of a block (router, shared experts, whatever is added) stays the model's own, as do the names of
parameters, so a checkpoint or a folder of weights has what the original model would write.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from ds_core.holdings import keep_slice
from ds_moe.config import ROUTING_KEYS
from ds_moe.dispatch import Dispatch
from ds_moe.errors import ConversionError
from ds_moe.hugging_face.find import Block, find_blocks
from ds_moe.hugging_face.stacked import StackedForward

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_moe.config import ExpertParallel

__all__ = ["convert_experts"]

logger = logging.getLogger(__name__)


def convert_experts(model: nn.Module, build: Build) -> nn.Module:
    """`model`, its experts computed by ours; at ``autoep_size`` above 1 each rank with its own. Called on all ranks.

    Raises:
        ConversionError: there is no block to convert, or a setting does not fit the blocks there are.
    """
    section: ExpertParallel = build.config["expert_parallel"]
    blocks = find_blocks(model, section)
    _refuse_settings(blocks, section)
    group = build.mesh.group("expert") if section.autoep_size > 1 else None
    for block in blocks:
        dispatch = Dispatch(group, block.count)
        _convert_stacked(block, dispatch, build, section)
    logger.info(
        "%d blocks with %s experts converted, %d ranks a block",
        len(blocks),
        "/".join(str(count) for count in sorted({block.count for block in blocks})),
        section.autoep_size,
    )
    return model


def _convert_stacked(block: Block, dispatch: Dispatch, build: Build, section: ExpertParallel) -> None:
    experts: Any = block.experts
    if block.form is None:
        raise AssertionError(f"{block.title} has a list of experts")
    if dispatch.ranks > 1:
        for name in block.form.names:
            keep_slice(build, getattr(experts, name), "expert")
    experts.forward = StackedForward(experts, block.form, dispatch, use_grouped=section.use_grouped_mm)


def _refuse_settings(blocks: list[Block], section: ExpertParallel) -> None:
    stacked = next((block for block in blocks if block.form is not None), None)
    changed = section.changed(ROUTING_KEYS)
    if stacked is not None and changed:
        raise ConversionError(
            f"expert_parallel.{changed[0]} describes a block with a list of experts, but the experts of "
            f"{stacked.title} are stacked tensors, and its own router and shared experts go on as they are; take "
            f"{', '.join(changed)} out"
        )
