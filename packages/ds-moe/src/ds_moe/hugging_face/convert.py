"""The transform: experts of Hugging Face models get our forward, and each rank keeps the slice of its experts.

Everything else of a block (router, shared experts, whatever is added) stays the model's own, as do the names of
parameters, so a checkpoint or a folder of weights has what the original model would write.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ds_core.holdings import keep_slice, share_names
from ds_core.placeholder import assign, is_placeholder
from ds_moe.axis import EXPERT_AXIS
from ds_moe.config import ROUTING_KEYS
from ds_moe.dispatch import Dispatch
from ds_moe.errors import ConversionError
from ds_moe.hugging_face.find import Block, find_blocks
from ds_moe.hugging_face.listed import ListedForward
from ds_moe.hugging_face.probe import Probe
from ds_moe.hugging_face.stacked import StackedForward

if TYPE_CHECKING:
    from ds_core.build import Build
    from ds_moe.config import ExpertParallel
    from ds_moe.hugging_face.form import StackedForm

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
    group = build.mesh.group(EXPERT_AXIS) if section.autoep_size > 1 else None
    probed: set[tuple[type[nn.Module], type[nn.Module]]] = set()
    for block in blocks:
        kind = type(block.module), type(block.experts)
        is_first = kind not in probed and not _is_elsewhere(block.module)
        probed.add(kind)
        probe = Probe(block) if is_first else None
        dispatch = Dispatch(group, block.count)
        if block.form is not None:
            _convert_stacked(block, block.form, dispatch, build, section)
        else:
            _convert_listed(
                block, dispatch, model, build, section, gives_logits=probe is not None and probe.gave_logits
            )
        if probe is not None:
            probe.compare()
    if group is not None and any(block.form is None for block in blocks):
        share_names(build, model, group)
    logger.info(
        "%d blocks with %s experts converted, %d ranks a block",
        len(blocks),
        "/".join(str(count) for count in sorted({block.count for block in blocks})),
        section.autoep_size,
    )
    return model


def _convert_stacked(
    block: Block, form: StackedForm, dispatch: Dispatch, build: Build, section: ExpertParallel
) -> None:
    experts: Any = block.experts
    if dispatch.ranks > 1:
        for name in form.names:
            keep_slice(build, getattr(experts, name), EXPERT_AXIS)
    experts.forward = StackedForward(block, form, dispatch, use_grouped=section.use_grouped_mm)


def _convert_listed(
    block: Block, dispatch: Dispatch, model: nn.Module, build: Build, section: ExpertParallel, *, gives_logits: bool
) -> None:
    forward = ListedForward(block, model, section, dispatch)
    forward.returns_logits = gives_logits
    if dispatch.ranks > 1:
        first = build.mesh.rank(EXPERT_AXIS) * dispatch.local_experts
        mine = dict(list(block.experts.named_children())[first : first + dispatch.local_experts])
        _keep_experts(block.experts, mine, build)
        forward.local = list(mine.values())
        setattr(block.module, block.experts_name, nn.ModuleDict(mine))
        build.split_over([p for one in forward.local for p in one.parameters()], EXPERT_AXIS, sliced=False)
    module: Any = block.module
    module.forward = forward


def _keep_experts(experts: nn.Module, mine: dict[str, nn.Module], build: Build) -> None:
    """Gathers what is in pieces, of all experts in one order; this rank's get their full values."""
    with torch.no_grad():
        for name, expert in experts.named_children():
            for parameter in expert.parameters():
                was_elsewhere = is_placeholder(parameter.data)
                value = build.full(parameter)
                if name in mine and was_elsewhere:
                    assign(parameter, value.clone())


def _is_elsewhere(block: nn.Module) -> bool:
    return any(is_placeholder(parameter.data) for parameter in block.parameters())


def _refuse_settings(blocks: list[Block], section: ExpertParallel) -> None:
    stacked = next((block for block in blocks if block.form is not None), None)
    changed = section.changed(ROUTING_KEYS)
    if stacked is not None and changed:
        raise ConversionError(
            f"expert_parallel.{changed[0]} describes a block with a list of experts, but the experts of "
            f"{stacked.title} are stacked tensors, and its own router and shared experts go on as they are; take "
            f"{', '.join(changed)} out"
        )
