"""Norms of gradients and weights, and clipping, for training loops that drive no engine.

Under an engine ``gradient_clipping`` and ``engine.get_global_grad_norm()`` do this, sharded and over all ranks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ds_core import comm

__all__ = ["clip_grad_norm_", "clip_tensors_by_global_norm", "get_global_norm", "get_grad_norm", "get_weight_norm"]


def get_global_norm(norm_list: Iterable[float | torch.Tensor]) -> float:
    """The L2 norm of everything whose parts have these L2 norms."""
    return math.sqrt(sum(float(norm) ** 2 for norm in norm_list))


def _norm(tensors: Sequence[torch.Tensor], norm_type: float, group: Any) -> torch.Tensor:
    """The p-norm of all elements, 0-dim float32; over the ranks of `group`, each of which has other elements."""
    device = tensors[0].device if tensors else torch.device("cpu")
    norms = [torch.linalg.vector_norm(tensor.detach().float(), norm_type) for tensor in tensors]
    if math.isinf(norm_type):
        total = torch.stack(norms).max() if norms else torch.zeros((), device=device)
        op = comm.ReduceOp.MAX
    else:
        total = torch.stack(norms).pow(norm_type).sum() if norms else torch.zeros((), device=device)
        op = comm.ReduceOp.SUM
    if group is not None and comm.get_world_size(group) > 1:
        comm.all_reduce(total, op=op, group=group)
    return total if math.isinf(norm_type) else total.pow(1 / norm_type)


def _listed(parameters: Any) -> list[torch.Tensor]:
    return [parameters] if isinstance(parameters, torch.Tensor) else list(parameters)


def get_grad_norm(parameters: Any, norm_type: float = 2, mpu: Any = None) -> float:
    """The p-norm of the gradients; over the ranks of ``mpu.get_model_parallel_group()``, where an `mpu` is given."""
    grads = [parameter.grad for parameter in _listed(parameters) if parameter.grad is not None]
    return float(_norm(grads, float(norm_type), None if mpu is None else mpu.get_model_parallel_group()))


def get_weight_norm(parameters: Any, norm_type: float = 2, mpu: Any = None) -> float:
    """As `get_grad_norm`, of the parameters themselves."""
    group = None if mpu is None else mpu.get_model_parallel_group()
    return float(_norm(_listed(parameters), float(norm_type), group))


def clip_grad_norm_(parameters: Any, max_norm: float, norm_type: float = 2, mpu: Any = None) -> torch.Tensor:
    """Scales gradients in place so that their norm is at most `max_norm`; returns what it was, 0-dim."""
    grads = [parameter.grad for parameter in _listed(parameters) if parameter.grad is not None]
    total = _norm(grads, float(norm_type), None if mpu is None else mpu.get_model_parallel_group())
    _scale(grads, max_norm, total, 1e-6)
    return total


def clip_tensors_by_global_norm(
    input_tensors: Sequence[torch.Tensor],
    max_norm: float = 1.0,
    global_norm: float | torch.Tensor | None = None,
    mpu: Any = None,
    eps: float = 1e-6,
) -> float | torch.Tensor:
    """Scales tensors in place so that their L2 norm together is at most `max_norm`; returns what it was."""
    if global_norm is None:
        global_norm = _norm(list(input_tensors), 2.0, None if mpu is None else mpu.get_model_parallel_group())
    _scale(input_tensors, max_norm, global_norm, eps)
    return global_norm


def _scale(tensors: Sequence[torch.Tensor], max_norm: float, norm: float | torch.Tensor, eps: float) -> None:
    factor = min(1.0, max_norm / (float(norm) + eps))
    if factor < 1.0:
        for tensor in tensors:
            tensor.detach().mul_(factor)
