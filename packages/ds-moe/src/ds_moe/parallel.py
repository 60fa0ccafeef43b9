"""Expert parallelism: which layers ask for it, and the transform that leaves each rank its experts."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

from ds_core import comm
from ds_core.holdings import keep_slice, share_names
from ds_core.placeholder import assign, is_placeholder
from ds_moe.axis import EXPERT_AXIS
from ds_moe.experts import Experts
from ds_moe.mixture import Mixture

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["agreed_sizes", "divide_experts", "divide_made_experts", "layers_of", "sizes_of"]

logger = logging.getLogger(__name__)


def layers_of(model: torch.nn.Module) -> dict[str, Mixture]:
    """Layers with experts by their names, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}


def sizes_of(model: torch.nn.Module) -> dict[str, int]:
    """How many ranks share the experts of each layer, by what asks for it; without layers that share none."""
    return {f"ep_size of {name or 'the model'}": layer.ep_size for name, layer in layers_of(model).items()}


def agreed_sizes(model: torch.nn.Module) -> dict[str, int]:
    """`sizes_of` over all ranks, which may have made different layers. Called on all ranks."""
    mine = sizes_of(model)
    found = comm.gather_json(mine) if comm.is_initialized() else [mine]
    return {name: size for rank in found for name, size in rank.items()}


def divide_experts(module: torch.nn.Module, build: Build) -> torch.nn.Module:
    """Leaves this rank its share of the experts of every layer there is. A transform; called on all ranks."""
    if build.mesh.size(EXPERT_AXIS) == 1:
        return module
    layers = [layer for layer in layers_of(module).values() if layer.ep_size > 1 and layer.dispatch.group is None]
    group, rank = build.mesh.group(EXPERT_AXIS), build.mesh.rank(EXPERT_AXIS)
    for layer in layers:
        layer.connect(group)
        each = layer.num_local_experts
        if isinstance(layer.experts, Experts):
            _keep_modules(build, layer.experts, rank * each, each)
        else:
            for parameter in layer.experts.parameters():
                keep_slice(build, parameter, EXPERT_AXIS)
    if layers:
        logger.info("experts of %d layers are shared by %d ranks", len(layers), build.mesh.size(EXPERT_AXIS))
    return module


def divide_made_experts(module: torch.nn.Module, build: Build) -> torch.nn.Module:
    """The same for layers that a pipeline has made since, and tells all ranks who has which expert in the end.

    A transform that comes after those that divide the model in other ways; called on all ranks.
    """
    if build.mesh.size(EXPERT_AXIS) == 1:
        return module
    divide_experts(module, build)
    build.elsewhere.clear()  # what was told before the stages parted may name ranks that gave it away
    share_names(build, module, build.mesh.group("pipe", EXPERT_AXIS))
    return module


def _keep_modules(build: Build, experts: Experts, first: int, count: int) -> None:
    # Values that are in pieces are brought together before any rank forgets its part in that.
    for parameter in experts.parameters():
        if is_placeholder(parameter.data):
            assign(parameter, build.full(parameter).detach().clone())
    experts.keep(first, count)
    build.split_over(experts.parameters(), EXPERT_AXIS, sliced=False)
