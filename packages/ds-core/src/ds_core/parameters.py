"""Which parameters are trained, in which optimizer groups; and the checks on what a caller hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ds_core.errors import ModelError

__all__ = ["check_model", "optimizer_groups", "persistent_buffers"]


def check_model(model: Any) -> None:
    """Raises ModelError unless `model` is a module with parameters."""
    if not isinstance(model, torch.nn.Module):
        raise ModelError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if next(iter(model.parameters()), None) is None:
        raise ModelError(
            f"model {type(model).__name__} has no parameters; there is nothing to train or to shard. Submodules must "
            "be attributes or in nn.ModuleList, not in a plain list"
        )
    foreign = [name for name, parameter in model.named_parameters() if type(parameter.data).__name__ == "DTensor"]
    if foreign:
        raise ModelError(
            f"parameter {foreign[0]!r} is a DTensor: the model is sharded already, by fully_shard or "
            "parallelize_module; pass the model as it was before, and set zero_optimization.stage"
        )
    meta = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if meta:
        raise ModelError(f"parameter {meta[0]!r} is on the meta device and has no values; materialise the model first")


def persistent_buffers(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Buffers that are state, with their names; one that is registered in several places under each of its names."""
    for prefix, owner in module.named_modules():
        for name, buffer in owner.named_buffers(recurse=False):
            if name not in owner._non_persistent_buffers_set:
                yield (f"{prefix}.{name}" if prefix else name), buffer


def optimizer_groups(
    module: torch.nn.Module, optimizer: Any, model_parameters: Any, *, dropped: frozenset[int] = frozenset()
) -> tuple[torch.optim.Optimizer | None, list[dict[str, Any]]]:
    """The caller's optimizer, made if it is a callable, and the parameter groups to train.

    Args:
        module: the model as it will be trained.
        optimizer: a torch optimizer, a callable that makes one from parameters, or None.
        model_parameters: tensors, (name, tensor) pairs or group dicts; None takes every trainable parameter.
        dropped: ids of parameters of the caller's model that transforms left to other ranks; they are taken out of
            whatever the caller passed, and groups stay even when nothing of them is left.

    Raises:
        ModelError: a parameter does not belong to the model, appears twice, or none is trainable.
    """
    groups = _groups(module, model_parameters)
    if dropped:
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in dropped]} for group in groups]
    if optimizer is None:
        made = None
    elif isinstance(optimizer, torch.optim.Optimizer):
        made = optimizer
    elif isinstance(optimizer, Callable):  # type: ignore[arg-type]
        made = optimizer(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise ModelError(f"optimizer= was called and returned {type(made).__name__}, not a torch.optim.Optimizer")
    else:
        raise ModelError(
            f"optimizer must be a torch.optim.Optimizer or a callable that makes one, got {type(optimizer).__name__}"
        )
    for group in made.param_groups if made is not None and dropped else ():
        group["params"] = [p for p in group["params"] if id(p) not in dropped]
    if made is not None:
        groups = [dict(group) for group in made.param_groups]
    _check_members(module, groups, "the optimizer" if made is not None else "model_parameters")
    return made, groups


def _groups(module: torch.nn.Module, given: Any) -> list[dict[str, Any]]:
    if given is None:
        return [{"params": [p for p in module.parameters() if p.requires_grad]}]
    if isinstance(given, torch.Tensor):
        raise ModelError("model_parameters must be an iterable of parameters or group dicts, got a single tensor")
    items = list(given)
    if items and isinstance(items[0], dict):
        return [{**group, "params": _tensors(group["params"])} for group in items]
    return [{"params": [p for p in _tensors(items) if p.requires_grad]}]


def _tensors(params: torch.Tensor | Iterable[Any]) -> list[torch.nn.Parameter]:
    items: list[Any] = [params] if isinstance(params, torch.Tensor) else list(params)
    members: list[torch.nn.Parameter] = [item[1] if isinstance(item, tuple) else item for item in items]
    return members


def _check_members(module: torch.nn.Module, groups: list[dict[str, Any]], owner: str) -> None:
    known = {id(parameter) for parameter in module.parameters()}
    seen: dict[int, int] = {}
    trainable = 0
    for index, group in enumerate(groups):
        for place, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                raise ModelError(
                    f"{owner} holds a tensor of shape {tuple(parameter.shape)} (group {index}, place {place}) that is "
                    "not a parameter of the model; make it from model.parameters() of the model passed as model="
                )
            if id(parameter) in seen:
                raise ModelError(f"{owner} holds one parameter twice, in groups {seen[id(parameter)]} and {index}")
            seen[id(parameter)] = index
            trainable += parameter.requires_grad
    if seen and not trainable:
        raise ModelError(f"every parameter of {owner} is frozen; set requires_grad on what should be trained")
