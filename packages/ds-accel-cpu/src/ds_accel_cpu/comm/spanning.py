"""A transport for ranks of several hosts: shared memory within each host, gloo between them.

Note [Lanes]
    Every host has as many ranks, and the i-th ranks of all hosts form lane i, a gloo group. What crosses hosts crosses
    once for each host, spread over the lanes: an all-reduce is a reduce-scatter within the host, an all-reduce in each
    lane over a piece, and an all-gather within the host. Sums are made within each host in rank order first and then
    over hosts in the order of their first ranks; narrow floats are rounded once at each of the two.

    Where hosts hold different numbers of ranks, or memory cannot be shared, every rank counts as a host of its own: all
    is gloo then, and sums are in rank order.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence as Tensors
from datetime import timedelta
from typing import Any

import torch
from torch._C._distributed_c10d import Store

from ds_accel_cpu.comm.codes import AVERAGE, SUM
from ds_accel_cpu.comm.gloo import GlooBytes, as_bytes
from ds_accel_cpu.comm.hosts import Plan
from ds_accel_cpu.comm.reduction import reduce_tensors
from ds_accel_cpu.comm.sequence import Sequence
from ds_accel_cpu.comm.transport import LocalTransport, Pending

__all__ = ["SpanningTransport"]

Tensor = torch.Tensor

WHOLE_BYTES = 64 * 1024
"""Reductions across hosts up to this size are read by everyone in whole."""


class SpanningTransport:
    """See the module.

    Args:
        store: where the ranks meet.
        prefix: of this meeting in the store.
        rank: this rank in the group.
        layout: who is where; every host has as many ranks.
        local: between the ranks of this host; None when each has one rank.
        timeout: to connect.
    """

    def __init__(
        self, store: Store, prefix: str, rank: int, layout: Plan, local: LocalTransport | None, timeout: timedelta
    ) -> None:
        hosts, lanes = len(layout.hosts), len(layout.local)
        self._layout: Plan = layout
        self._rank: int = rank
        self._ranks: int = hosts * lanes
        self._hosts: int = hosts
        self._lanes: int = lanes
        self._local: LocalTransport | None = local
        self._all = GlooBytes(store, f"{prefix}/gloo", rank, self._ranks, timeout)
        self._lane = (
            self._all if lanes == 1 else GlooBytes(store, f"{prefix}/lane{layout.lane}", layout.host, hosts, timeout)
        )
        self._sequence = Sequence()

    def _issue(self, run: Any, is_async: bool, *args: Any) -> Pending | None:
        return self._sequence.issue(functools.partial(run, *args), is_async)

    # ---- reductions ----

    def all_reduce(self, tensor: Tensor, op: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._issue(self._all_reduce, is_async, tensor, op, timeout_s)

    def reduce(self, tensor: Tensor, op: int, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`; costs what an all-reduce costs."""
        return self._issue(self._reduce, is_async, tensor, op, root, timeout_s)

    def reduce_scatter(
        self, output: Tensor, inputs: Tensors[Tensor], op: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`."""
        return self._issue(self._reduce_scatter, is_async, output, inputs, op, timeout_s)

    def _reduce(self, tensor: Tensor, op: int, root: int, timeout_s: float) -> None:
        whole = tensor if root == self._rank else tensor.clone()
        self._all_reduce(whole, op, timeout_s)

    def _all_reduce(self, tensor: Tensor, op: int, timeout_s: float) -> None:
        flat = tensor.detach().view(-1)
        step = SUM if op == AVERAGE else op
        if self._local is None:
            self._reduce_over_hosts(flat, step, timeout_s)
        else:
            padded = _padded(flat, self._lanes)
            piece = padded.new_empty(padded.numel() // self._lanes)
            self._local.reduce_scatter(piece, [padded], step, timeout_s, False)
            self._reduce_over_hosts(piece, step, timeout_s)
            self._local.all_gather([padded], piece, timeout_s, False)
            if padded is not flat:
                flat.copy_(padded[: flat.numel()])
        if op == AVERAGE:
            flat.div_(self._ranks)

    def _reduce_over_hosts(self, flat: Tensor, op: int, timeout_s: float) -> None:
        """Reduces `flat` in place over this lane."""
        hosts = self._hosts
        if flat.nbytes <= WHOLE_BYTES:
            blocks = flat.new_empty(hosts * flat.numel())
            self._lane.gather_all(as_bytes(blocks), as_bytes(flat), timeout_s)
            reduce_tensors(list(blocks.view(hosts, -1).unbind(0)), flat, op)
            return
        padded = _padded(flat, hosts)
        blocks = torch.empty_like(padded)
        even = [padded.nbytes // hosts] * hosts
        self._lane.exchange(as_bytes(blocks), as_bytes(padded), even, even, timeout_s)
        pieces = list(blocks.view(hosts, -1).unbind(0))
        reduce_tensors(pieces, pieces[0], op)
        self._lane.gather_all(as_bytes(padded), as_bytes(pieces[0]), timeout_s)
        if padded is not flat:
            flat.copy_(padded[: flat.numel()])

    def _reduce_scatter(self, output: Tensor, inputs: Tensors[Tensor], op: int, timeout_s: float) -> None:
        blocks = _blocks(inputs, self._ranks)
        step = SUM if op == AVERAGE else op
        order = [host[lane] for lane in range(self._lanes) for host in self._layout.hosts]
        by_lane = torch.cat([blocks[rank].reshape(-1) for rank in order])
        mine = by_lane
        if self._local is not None:
            mine = by_lane.new_empty(by_lane.numel() // self._lanes)
            self._local.reduce_scatter(mine, [by_lane], step, timeout_s, False)
        pieces = torch.empty_like(mine)
        even = [mine.nbytes // self._hosts] * self._hosts
        self._lane.exchange(as_bytes(pieces), as_bytes(mine), even, even, timeout_s)
        reduce_tensors(list(pieces.view(self._hosts, -1).unbind(0)), output, step)
        if op == AVERAGE:
            output.detach().div_(self._ranks)

    # ---- copies ----

    def all_gather(self, outputs: Tensors[Tensor], source: Tensor, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._issue(self._all_gather, is_async, outputs, source, timeout_s)

    def broadcast(self, tensor: Tensor, root: int, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._issue(self._broadcast, is_async, tensor, root, timeout_s)

    def gather(
        self, outputs: Tensors[Tensor], source: Tensor, root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`; over gloo."""
        written = [as_bytes(each) for each in outputs]
        return self._issue(self._all.gather, is_async, written, as_bytes(source), root, timeout_s)

    def scatter(
        self, output: Tensor, inputs: Tensors[Tensor], root: int, timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`; over gloo."""
        read = [as_bytes(each) for each in inputs]
        return self._issue(self._all.scatter, is_async, as_bytes(output), read, root, timeout_s)

    def all_to_all(
        self, outputs: Tensors[Tensor], inputs: Tensors[Tensor], timeout_s: float, is_async: bool
    ) -> Pending | None:
        """See `Transport`; within the host through shared memory, the rest over gloo."""
        return self._issue(self._all_to_all, is_async, outputs, inputs, timeout_s)

    def barrier(self, timeout_s: float, is_async: bool) -> Pending | None:
        """See `Transport`."""
        return self._issue(self._barrier, is_async, timeout_s)

    def _all_gather(self, outputs: Tensors[Tensor], source: Tensor, timeout_s: float) -> None:
        numel = source.numel()
        of_lane = source.new_empty(self._hosts * numel)
        self._lane.gather_all(as_bytes(of_lane), as_bytes(source), timeout_s)
        everything = of_lane
        if self._local is not None:
            everything = source.new_empty(self._ranks * numel)
            self._local.all_gather([everything], of_lane, timeout_s, False)
        found = everything.view(self._lanes, self._hosts, numel)
        for rank, output in enumerate(_blocks(outputs, self._ranks)):
            where = found[self._layout.lane_of(rank), self._layout.host_of(rank)]
            output.copy_(where.view(output.shape))

    def _broadcast(self, tensor: Tensor, root: int, timeout_s: float) -> None:
        lane, host = self._layout.lane_of(root), self._layout.host_of(root)
        if self._layout.lane == lane:
            self._lane.broadcast(as_bytes(tensor), host, timeout_s)
        if self._local is not None:
            self._local.broadcast(tensor, lane, timeout_s, False)

    def _all_to_all(self, outputs: Tensors[Tensor], inputs: Tensors[Tensor], timeout_s: float) -> None:
        here = set(self._layout.local) if self._local is not None else set()
        if self._local is not None:
            local = self._layout.local
            self._local.all_to_all(
                [outputs[each] for each in local], [inputs[each] for each in local], timeout_s, False
            )
        in_bytes = [0 if each in here else tensor.nbytes for each, tensor in enumerate(inputs)]
        out_bytes = [0 if each in here else tensor.nbytes for each, tensor in enumerate(outputs)]
        source = torch.cat([as_bytes(tensor) for each, tensor in enumerate(inputs) if each not in here])
        received = torch.empty(sum(out_bytes), dtype=torch.uint8)
        self._all.exchange(received, source, out_bytes, in_bytes, timeout_s)
        for output, piece in zip(outputs, received.split(out_bytes), strict=True):
            if piece.numel():
                as_bytes(output).copy_(piece)

    def _barrier(self, timeout_s: float) -> None:
        if self._local is not None:
            self._local.barrier(timeout_s, False)
        self._lane.barrier(timeout_s)
        if self._local is not None:
            self._local.barrier(timeout_s, False)

    # ---- messages ----

    def send(self, tensor: Tensor, peer: int, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """See `Transport`."""
        if self._local is not None and peer in self._layout.local:
            return self._local.send(tensor, self._layout.lane_of(peer), tag, timeout_s, is_async)
        return self._all.send(as_bytes(tensor), peer, tag)

    def receive(self, tensor: Tensor, peer: int | None, tag: int, timeout_s: float, is_async: bool) -> Pending:
        """See `Transport`.

        Raises:
            ValueError: from anyone, in a group that uses both shared memory and gloo.
        """
        if self._local is not None and peer is None:
            raise ValueError(
                "recv from any source is not served in a group of several hosts with several ranks each: name the "
                "source, or make the group with DS_COMM_BACKEND=gloo"
            )
        if self._local is not None and peer in self._layout.local:
            return self._local.receive(tensor, self._layout.lane_of(peer), tag, timeout_s, is_async)
        return self._all.receive(as_bytes(tensor), peer, tag)

    def close(self, drain_s: float) -> None:
        """See `Transport`."""
        self._sequence.close()
        if self._local is not None:
            self._local.close(drain_s)


def _blocks(tensors: Tensors[Tensor], count: int) -> list[Tensor]:
    """One block for each rank; one tensor alone holds them all."""
    if len(tensors) == count:
        return [each.detach() for each in tensors]
    return list(tensors[0].detach().view(-1).view(count, -1).unbind(0))


def _padded(flat: Tensor, parts: int) -> Tensor:
    """The vector itself, or a longer copy, so that it divides into parts."""
    missing = -flat.numel() % parts
    return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat
