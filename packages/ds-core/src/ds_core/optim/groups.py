"""Parameter groups in one form: a list of dicts with a list of tensors each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ds_core.errors import ModelError

__all__ = ["normalize", "tensors_of"]


def normalize(param_groups: Iterable[Any]) -> list[dict[str, Any]]:
    """Group dicts from what torch takes: tensors, (name, tensor) pairs, or dicts with a ``"params"`` key.

    The dicts and lists are new, so the caller's are left alone and a generator is read once.

    Raises:
        ModelError: there is no tensor, or something is not a tensor.
    """
    items = [param_groups] if isinstance(param_groups, Mapping) else list(param_groups)
    if items and all(isinstance(item, Mapping) for item in items):
        groups = [{**item, "params": _as_list(item.get("params", ()))} for item in items]
    else:
        groups = [{"params": items}]
    for tensor in tensors_of(groups):
        if not isinstance(tensor, torch.Tensor):
            raise ModelError(f"an optimizer takes tensors, (name, tensor) pairs or group dicts; got {tensor!r}.")
    if not tensors_of(groups):
        raise ModelError("the optimizer was given no parameters. Does the model have any with requires_grad?")
    return groups


def tensors_of(groups: Iterable[Mapping[str, Any]]) -> list[torch.Tensor]:
    """Every tensor of every group, in order; names are left out."""
    return [item[1] if isinstance(item, tuple) else item for group in groups for item in group["params"]]


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, torch.Tensor) else list(params)
