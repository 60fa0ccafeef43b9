"""Parameters of experts told from others, and optimizer groups that keep them apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ds_moe.mixture import Mixture

__all__ = [
    "configure_moe_param_groups",
    "has_moe_layers",
    "is_moe_param",
    "is_moe_param_group",
    "split_params_grads_into_shared_and_expert_params",
    "split_params_into_different_moe_groups_for_optimizer",
    "split_params_into_shared_and_expert_params",
]

Group = dict[str, Any]


def has_moe_layers(m: torch.nn.Module) -> tuple[bool, int]:
    """Whether there is a layer with experts in `m`, and how many experts the first one has (0 without)."""
    layer = next((each for each in m.modules() if isinstance(each, Mixture)), None)
    return layer is not None, layer.num_experts if layer is not None else 0


def is_moe_param(param: torch.Tensor) -> bool:
    """Whether `param` is an expert's."""
    return not getattr(param, "allreduce", True)


def is_moe_param_group(param_group: Mapping[str, Any]) -> bool:
    """Whether an optimizer group was made for experts."""
    return bool(param_group.get("moe", False))


def split_params_into_shared_and_expert_params(
    params: Iterable[torch.nn.Parameter],
) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Parameters that are not of experts, and those that are."""
    given = list(params)
    return [p for p in given if not is_moe_param(p)], [p for p in given if is_moe_param(p)]


def split_params_grads_into_shared_and_expert_params(
    group: Iterable[torch.nn.Parameter],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Gradients of parameters that are not of experts, and of those that are; without those that have none."""
    shared, experts = split_params_into_shared_and_expert_params(group)
    return [p.grad for p in shared if p.grad is not None], [p.grad for p in experts if p.grad is not None]


def split_params_into_different_moe_groups_for_optimizer(
    param_groups: Group | Iterable[Group], max_group_size: int | None = 178956971
) -> list[Group]:
    """Optimizer groups with experts in groups of their own, one or more for each number of ranks that share them.

    An engine needs no such groups: it knows which ranks hold a parameter. They are for other hyperparameters of
    experts, and for code written for DeepSpeed.

    Args:
        param_groups: one group or several, each a dict with ``params``.
        max_group_size: most elements in a group of experts; None for any number.

    Returns:
        The groups with what they had left, then groups of experts, which also have ``moe`` and ``name``.
    """
    given = [param_groups] if isinstance(param_groups, dict) else list(param_groups)
    shared: list[Group] = []
    expert_groups: list[Group] = []
    for group in given:
        others, experts = split_params_into_shared_and_expert_params(group["params"])
        shared.append({**group, "params": others})
        names = dict.fromkeys(getattr(p, "group_name", "") for p in experts)
        for name in names:
            members = [p for p in experts if getattr(p, "group_name", "") == name]
            for run in _runs(members, max_group_size):
                expert_groups.append({**group, "params": run, "moe": True, "name": name})
    return shared + expert_groups


def configure_moe_param_groups(model_parameters: Iterable[Any]) -> list[Group]:
    """The same from parameters, or from groups of them.

    Args:
        model_parameters: parameters, or dicts with ``params``.
    """
    given = list(model_parameters)
    groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    return split_params_into_different_moe_groups_for_optimizer(groups)


def _runs(parameters: list[torch.nn.Parameter], most_numel: int | None) -> list[list[torch.nn.Parameter]]:
    """Consecutive runs of at most that many elements; a larger parameter alone."""
    runs: list[list[torch.nn.Parameter]] = []
    numel = 0
    for parameter in parameters:
        if not runs or (most_numel is not None and numel + parameter.numel() > most_numel):
            runs.append([])
            numel = 0
        runs[-1].append(parameter)
        numel += parameter.numel()
    return runs
