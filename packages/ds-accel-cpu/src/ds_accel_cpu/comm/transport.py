"""What carries the collectives of one group; here, over the shared segment of one host.

Every method takes contiguous tensors of the host and is called on all ranks in the same order. With ``is_async`` it
returns a `Pending` and leaves the tensors to it until it is over; otherwise it returns None when the result is there.
Ranks and roots are numbers within the group, `op` is a number of `codes`, timeouts are seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from ds_accel_cpu import _comm
from ds_accel_cpu.comm.codes import dtype_code

__all__ = ["LocalTransport", "Pending", "Transport"]

Tensor = torch.Tensor


class Pending(Protocol):
    """An operation under way."""

    def wait(self, limit_s: float = -1.0) -> bool:
        """Waits for the end, at most `limit_s` when that is not below 0: False when it was over first. Raises."""

    def is_over(self) -> bool:
        """Whether it has ended, well or not."""

    @property
    def error(self) -> str:
        """What went wrong; empty."""

    @property
    def source(self) -> int:
        """The sender of a message that was received."""


class Transport(Protocol):
    """The collectives of a group; see the module."""

    def all_reduce(self, tensor: Tensor, op: int, timeout_s: float, is_async: bool) -> Pending | None:
        """Reduces `tensor` in place."""

    def reduce(self, tensor: Tensor, op: int, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """Reduces `tensor` in place at the root; others keep theirs."""

    def reduce_scatter(
        self, output: Tensor, inputs: Sequence[Tensor], op: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """The reduced i-th input to rank i. One input of N times the size stands for its N blocks."""

    def all_gather(self, outputs: Sequence[Tensor], source: Tensor, timeout_s: float, is_async: bool) -> Pending | None:
        """Rank i's source to the i-th output. One output of N times the size stands for its N blocks."""

    def broadcast(self, tensor: Tensor, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """The root's tensor to all."""

    def gather(
        self, outputs: Sequence[Tensor], source: Tensor, root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """Rank i's source to the i-th output of the root; no outputs elsewhere."""

    def scatter(
        self, output: Tensor, inputs: Sequence[Tensor], root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """The root's i-th input to rank i; no inputs elsewhere."""

    def all_to_all(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], timeout_s: float, is_async: bool
    ) -> Pending | None:
        """The i-th input to rank i, whose i-th output takes it; sizes may differ from pair to pair."""

    def barrier(self, timeout_s: float, is_async: bool) -> Pending | None:
        """Ends when every rank has come."""

    def send(self, tensor: Tensor, peer: int, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """A message to `peer`."""

    def receive(self, tensor: Tensor, peer: int | None, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """A message from `peer`, None for anyone."""

    def close(self, drain_s: float) -> None:
        """Leaves; what was issued has `drain_s` to end."""


class LocalTransport:
    """A `Transport` between ranks of one host.

    Args:
        endpoint: this rank's end of the segment.
    """

    def __init__(self, endpoint: _comm.Endpoint) -> None:
        self.endpoint = endpoint

    def _run(
        self,
        kind: int,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        bytes_: int,
        timeout_s: float,
        is_async: bool,
        op: int = 0,
        root: int = -1,
    ) -> Pending | None:
        model = inputs[0] if inputs else outputs[0]
        return self.endpoint.collective(
            kind,
            dtype_code(model.dtype),
            op,
            root,
            bytes_,
            [each.data_ptr() for each in inputs],
            [each.data_ptr() for each in outputs],
            timeout_s,
            is_async,
        )

    def all_reduce(self, tensor: Tensor, op: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.ALL_REDUCE, [tensor], [tensor], tensor.nbytes, timeout_s, is_async, op)

    def reduce(self, tensor: Tensor, op: int, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.REDUCE, [tensor], [tensor], tensor.nbytes, timeout_s, is_async, op, root)

    def reduce_scatter(
        self, output: Tensor, inputs: Sequence[Tensor], op: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.REDUCE_SCATTER, [output], inputs, output.nbytes, timeout_s, is_async, op)

    def all_gather(self, outputs: Sequence[Tensor], source: Tensor, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.ALL_GATHER, outputs, [source], source.nbytes, timeout_s, is_async)

    def broadcast(self, tensor: Tensor, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.BROADCAST, [tensor], [tensor], tensor.nbytes, timeout_s, is_async, root=root)

    def gather(
        self, outputs: Sequence[Tensor], source: Tensor, root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.GATHER, outputs, [source], source.nbytes, timeout_s, is_async, root=root)

    def scatter(
        self, output: Tensor, inputs: Sequence[Tensor], root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`."""
        return self._run(_comm.SCATTER, [output], inputs, output.nbytes, timeout_s, is_async, root=root)

    def all_to_all(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`."""
        return self.endpoint.all_to_all(
            dtype_code(inputs[0].dtype),
            [each.data_ptr() for each in inputs],
            [each.data_ptr() for each in outputs],
            [each.nbytes for each in inputs],
            [each.nbytes for each in outputs],
            timeout_s,
            is_async,
        )

    def barrier(self, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self.endpoint.collective(_comm.BARRIER, 0, 0, -1, 0, [], [], timeout_s, is_async)

    def send(self, tensor: Tensor, peer: int, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """See `Transport`."""
        return self.endpoint.message(True, peer, tag, tensor.data_ptr(), tensor.nbytes, timeout_s, is_async)

    def receive(self, tensor: Tensor, peer: int | None, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """See `Transport`."""
        source = _comm.ANY_RANK if peer is None else peer
        return self.endpoint.message(False, source, tag, tensor.data_ptr(), tensor.nbytes, timeout_s, is_async)

    def close(self, drain_s: float) -> None:
        """See `Transport`."""
        self.endpoint.close(drain_s)
