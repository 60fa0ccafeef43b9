"""Sums whose order does not depend on where in a buffer an element lies: pieces exchanged, then added in rank order.

Note [Sums in rank order]
    gloo's reduce-scatter and all-reduce send pieces round a ring, so which rank's number is added first depends on the
    place of an element in the buffer; cutting buffers another way changes last bits. Exchanging the pieces (one
    all-to-all, the same bytes) and adding them here in rank order gives each element the same sum however buffers are
    cut, so stages and bucket sizes agree to the bit at any number of ranks. It is also faster: gloo's own
    reduce-scatter is an all-reduce that throws most of its result away. Numbers are added in float32 where they are
    narrower and rounded once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from ds_core import buffers
from ds_core.comm.staged import BACKEND

__all__ = ["OrderedAllReduce", "OrderedReduceScatter", "serves"]

PAIR_NUMEL = 256
"""Two numbers have one sum whichever comes first: smaller sums of two ranks are left to the backend's one message."""


def serves(tensor: torch.Tensor, op: Any, group: dist.ProcessGroup) -> bool:
    """Whether sums of `tensor` over `group` are added here: plain sums of floating-point numbers over gloo."""
    return (
        op == dist.ReduceOp.SUM
        and group.size() > 1
        and type(tensor) in (torch.Tensor, torch.nn.Parameter)  # a subclass may lack the views this takes
        and tensor.is_floating_point()
        and tensor.is_contiguous()
        and tensor.numel() >= (1 if group.size() > 2 else PAIR_NUMEL)
        and tensor.numel() % group.size() == 0
        and _goes_over_gloo(tensor.device.type, group)
    )


def _goes_over_gloo(device_type: str, group: dist.ProcessGroup) -> bool:
    for part in str(dist.get_backend_config(group)).split(","):
        device, _, backend = part.rpartition(":")
        if device in ("", device_type):
            return backend in ("gloo", BACKEND)
    return False


class OrderedReduceScatter:
    """A reduce-scatter under way; `wait` leaves this rank's piece of the sum in `out`.

    Args:
        out: 1-D, ``source.numel() / ranks`` elements; may be this rank's piece of `source`.
        source: 1-D, contiguous; must stay as it is until `wait`.
        group: its ranks.
    """

    def __init__(self, out: torch.Tensor, source: torch.Tensor, group: dist.ProcessGroup) -> None:
        self._out = out
        self._ranks: int = group.size()
        self._pieces = buffers.take_like(source)
        self._work = dist.all_to_all_single(self._pieces, source, group=group, async_op=True)
        self._done = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Waits for the pieces and adds them."""
        if self._done:
            return True
        self._work.wait() if timeout is None else self._work.wait(timeout)
        add_in_order(self._out.view(-1), self._pieces.view(self._ranks, -1))
        self._done = True
        buffers.give(self._pieces)
        del self._pieces
        return True

    def is_completed(self) -> bool:
        """Whether `wait` would return soon: the pieces are here."""
        return self._done or bool(self._work.is_completed())


class OrderedAllReduce:
    """An all-reduce under way, in place: a reduce-scatter in rank order, then an all-gather, both by `wait`."""

    def __init__(self, tensor: torch.Tensor, group: dist.ProcessGroup) -> None:
        self._flat = tensor.view(-1)
        self._group = group
        self._ranks: int = group.size()
        self._pieces = buffers.take_like(self._flat)
        self._work = dist.all_to_all_single(self._pieces, self._flat, group=group, async_op=True)
        self._done = False

    def wait(self, timeout: timedelta | None = None) -> bool:
        """Completes both halves. Called on all ranks in the order of issue."""
        if self._done:
            return True
        self._work.wait() if timeout is None else self._work.wait(timeout)
        size = self._flat.numel() // self._ranks
        mine = self._pieces[:size]
        add_in_order(mine, self._pieces.view(self._ranks, -1))
        gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        gather(self._flat, mine, self._group)
        del mine
        self._done = True
        buffers.give(self._pieces)
        del self._pieces
        return True

    def is_completed(self) -> bool:
        """Whether `wait` returned already."""
        return self._done


def add_in_order(out: torch.Tensor, pieces: torch.Tensor) -> None:
    """``out = pieces[0] + pieces[1] + ...``, added from the first to the last.

    Args:
        out: (n,), may alias a row of `pieces`.
        pieces: (ranks, n).
    """
    rows = list(pieces.unbind(0))
    if len(rows) == 1:
        out.copy_(rows[0])
    elif len(rows) == 2 or out.dtype in (torch.float32, torch.float64):
        total = torch.add(rows[0], rows[1]) if len(rows) > 2 else torch.add(rows[0], rows[1], out=out)
        for row in rows[2:]:
            total.add_(row)
        if total is not out:
            out.copy_(total)
    else:
        wide = rows[0].float()
        for row in rows[1:]:
            wide.add_(row)
        out.copy_(wide)
