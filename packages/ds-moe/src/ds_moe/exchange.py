"""Rows sent to the ranks that a plan names, and their gradients sent back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from ds_core import comm

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Journey", "send_rows"]


class Journey:
    """Rows under way: take them with `arrive`, after whatever can be computed in the meantime."""

    def __init__(self, rows: torch.Tensor, handle: Any) -> None:
        self._rows: torch.Tensor = rows
        self._handle: Any = handle

    def arrive(self) -> torch.Tensor:
        """The rows, once they are there."""
        if self._handle is not None:
            self._handle.wait()
            self._handle = None
        return self._rows


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup, box: list[Any]
    ) -> torch.Tensor:
        ctx.plan = sent, received, group
        output = rows.new_empty((sum(received), *rows.shape[1:]))
        box.append(
            comm.all_to_all_single(output, rows.contiguous(), list(received), list(sent), group=group, async_op=True)
        )
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[Any, ...]:
        sent, received, group = ctx.plan
        gradient = gradients[0]
        output = gradient.new_empty((sum(sent), *gradient.shape[1:]))
        comm.all_to_all_single(output, gradient.contiguous(), list(sent), list(received), group=group)
        return output, None, None, None, None


def send_rows(rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: ProcessGroup) -> Journey:
    """Sends the first ``sent[0]`` rows to the first rank of `group` and so on, and takes ``received[i]`` from each.

    Called on all ranks of the group, however few rows they have; so is its backward, which sends gradients back.

    Args:
        rows: [sum of sent, ...].
        sent, received: rows for and from each rank of the group.
        group: the ranks.
    """
    box: list[Any] = []
    output: torch.Tensor = _Exchange.apply(rows, sent, received, group, box)  # type: ignore[no-untyped-call]
    return Journey(output, box[0])
