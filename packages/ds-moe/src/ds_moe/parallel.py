"""Expert parallelism: the mesh axis that layers ask for, and the transform that leaves each rank its experts."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ds_core.holdings import keep_slice, share_names
from ds_core.hooks import AxisRequest
from ds_core.placeholder import assign, is_placeholder
from ds_moe.errors import MoeConfigError
from ds_moe.experts import Experts
from ds_moe.mixture import Mixture

if TYPE_CHECKING:
    from ds_core.build import Build

__all__ = ["EXPERT_AXIS", "axis_requests", "divide_experts", "layers_of", "sizes_of"]

EXPERT_AXIS = "expert"
_INSIDE_DATA = 300
_AROUND_DATA = 150

logger = logging.getLogger(__name__)


def layers_of(model: torch.nn.Module) -> dict[str, Mixture]:
    """Layers with experts by their names, each once."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Mixture)}


def sizes_of(model: torch.nn.Module) -> dict[str, int]:
    """How many ranks share the experts of each layer, by what asks for it; without layers that share none."""
    return {f"ep_size of {name or 'the model'}": layer.ep_size for name, layer in layers_of(model).items()}


def axis_requests(asked: Mapping[str, int], *, around_data: bool = False) -> list[AxisRequest]:
    """The expert axis, where anything asks for more than one rank.

    Args:
        asked: ranks by what asks for them. Who asks for one keeps all experts on every rank, and is not counted.
        around_data: consecutive ranks differ in data, and those that share experts are apart
            (``use_data_before_expert_parallelism``); else those that share experts are consecutive.

    Raises:
        MoeConfigError: two ask for different numbers, naming both.
    """
    wanted = {name: size for name, size in asked.items() if size > 1}
    if not wanted:
        return []
    first, size = next(iter(wanted.items()))
    for name, other in wanted.items():
        if other != size:
            raise MoeConfigError(
                f"experts are shared by one number of ranks in all layers: {first} is {size}, and {name} is {other}; "
                "make them the same, or 1 for a layer that every rank keeps whole"
            )
    return [AxisRequest(EXPERT_AXIS, size, _AROUND_DATA if around_data else _INSIDE_DATA, splits_batch=True)]


def divide_experts(module: torch.nn.Module, build: Build) -> torch.nn.Module:
    """Leaves this rank its share of the experts of every layer. A transform; called on all ranks."""
    layers = {name: layer for name, layer in layers_of(module).items() if layer.ep_size > 1}
    if not layers or build.mesh.size(EXPERT_AXIS) == 1:
        return module
    group, rank = build.mesh.group(EXPERT_AXIS), build.mesh.rank(EXPERT_AXIS)
    for layer in layers.values():
        layer.connect(group)
        each = layer.num_local_experts
        if isinstance(layer.experts, Experts):
            _keep_modules(build, layer.experts, rank * each, each)
        else:
            for parameter in layer.experts.parameters():
                keep_slice(build, parameter, EXPERT_AXIS)
    share_names(build, module, group)
    logger.info("experts of %d layers are shared by %d ranks", len(layers), build.mesh.size(EXPERT_AXIS))
    return module


def _keep_modules(build: Build, experts: Experts, first: int, count: int) -> None:
    # Values that are in pieces are brought together before any rank forgets its part in that.
    for parameter in experts.parameters():
        if is_placeholder(parameter.data):
            assign(parameter, build.full(parameter).detach().clone())
    experts.keep(first, count)
    build.split_over(experts.parameters(), EXPERT_AXIS, sliced=False)
