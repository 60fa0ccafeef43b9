"""Tokens that all ranks of a group have, divided among them and brought together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm
from ds_moe.errors import RoutingError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["drop_tokens", "gather_tokens"]


def drop_tokens(input_: torch.Tensor, dim: int = 0, *, group: ProcessGroup | None = None) -> torch.Tensor:
    """This rank's piece of `input_` along `dim`; backward brings the pieces of the gradient together.

    Args:
        input_: the same on all ranks of `group`.
        dim: divided evenly.
        group: tensor-parallel ranks; None for one rank, which keeps all.

    Raises:
        RoutingError: the dimension does not divide over the ranks.
    """
    return input_ if group is None or group.size() == 1 else _Drop.apply(input_, dim, group)  # type: ignore[no-untyped-call]


def gather_tokens(input_: torch.Tensor, dim: int = 0, *, group: ProcessGroup | None = None) -> torch.Tensor:
    """The pieces of all ranks along `dim`; backward leaves this rank with its piece of the gradient."""
    return input_ if group is None or group.size() == 1 else _Gather.apply(input_, dim, group)  # type: ignore[no-untyped-call]


def _piece(x: torch.Tensor, dim: int, group: ProcessGroup) -> torch.Tensor:
    ranks, size = group.size(), x.shape[dim]
    if size % ranks:
        raise RoutingError(f"dim {dim} of shape {tuple(x.shape)} does not divide over {ranks} ranks; pad it")
    return x.narrow(dim, group.rank() * (size // ranks), size // ranks).contiguous()


def _whole(x: torch.Tensor, dim: int, group: ProcessGroup) -> torch.Tensor:
    pieces = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    comm.all_gather(pieces, x.contiguous(), group=group)
    return torch.cat(pieces, dim)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: ProcessGroup) -> torch.Tensor:
        ctx.where = dim, group
        return _piece(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return _whole(gradients[0], *ctx.where), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, group: ProcessGroup) -> torch.Tensor:
        ctx.where = dim, group
        return _whole(x, dim, group)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        return _piece(gradients[0], *ctx.where), None, None
