"""Collectives that reduce, copy or meet: names and arguments of torch.distributed, counted; one rank is an identity.

Every function is called on all ranks of its group. With ``async_op=True`` each returns a handle whose ``wait()``
completes the call, otherwise None. `prof`, `log_name` and `debug` concern the comms logger only.
See Note [What a call sends] in `counter` for the bytes each one is counted with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, ReduceOp

from ds_core.comm.counter import sent_ring
from ds_core.comm.issue import Measure, Waitable, alone, issue, joined
from ds_core.comm.ordered import OrderedAllReduce, serves
from ds_core.comm.state import facts, is_member

__all__ = [
    "all_reduce",
    "all_reduce_coalesced",
    "barrier",
    "broadcast",
    "inference_all_reduce",
    "monitored_barrier",
    "reduce",
]


def all_reduce(
    tensor: torch.Tensor,
    op: Any = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Reduce `tensor` in place over the group."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = tensor.numel() * tensor.element_size()
    if where.group is None:
        return alone("all_reduce", where, payload, async_op)
    sent = 2 * payload * (where.size - 1) // where.size
    measure = Measure(prof, log_name, debug)
    run: Callable[..., Any] = _all_reduce_ordered if serves(tensor, op, where.group) else dist.all_reduce
    return issue("all_reduce", where, payload, sent, async_op, measure, run, tensor, op, where.group, async_op)


def _all_reduce_ordered(tensor: torch.Tensor, _op: Any, group: ProcessGroup, async_op: bool) -> OrderedAllReduce | None:
    work = OrderedAllReduce(tensor, group)
    if async_op:
        return work
    work.wait()
    return None


def inference_all_reduce(
    tensor: torch.Tensor, op: Any = ReduceOp.SUM, group: ProcessGroup | None = None
) -> Waitable | None:
    """`all_reduce`; the name tensor-parallel inference calls it by."""
    return all_reduce(tensor, op, group)


def all_reduce_coalesced(
    tensors: Sequence[torch.Tensor],
    op: Any = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """`all_reduce` of several tensors, all under way at once."""
    handles = [all_reduce(tensor, op, group, True, prof, log_name, debug) for tensor in tensors]
    return joined(handles, async_op)


def reduce(
    tensor: torch.Tensor,
    dst: int | None = None,
    op: Any = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_dst: int | None = None,
) -> Waitable | None:
    """Reduce onto global rank `dst` (or `group_dst` within the group); other ranks' tensors are left undefined."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = tensor.numel() * tensor.element_size()
    if where.group is None:
        return alone("reduce", where, payload, async_op)
    return issue(
        "reduce",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.reduce,
        tensor,
        dst,
        op,
        where.group,
        async_op,
        group_dst,
    )


def broadcast(
    tensor: torch.Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_src: int | None = None,
) -> Waitable | None:
    """Copy the tensor of global rank `src` (or `group_src` within the group) into everyone's."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = tensor.numel() * tensor.element_size()
    if where.group is None:
        return alone("broadcast", where, payload, async_op)
    return issue(
        "broadcast",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.broadcast,
        tensor,
        src,
        where.group,
        async_op,
        group_src,
    )


def barrier(
    group: ProcessGroup | None = None,
    async_op: bool = False,
    device_ids: list[int] | None = None,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Wait for every rank of the group."""
    if not is_member(group):
        return None
    where = facts(group)
    if where.group is None:
        return alone("barrier", where, 0, async_op)
    measure = Measure(prof, log_name, debug)
    return issue("barrier", where, 0, 0, async_op, measure, dist.barrier, where.group, async_op, device_ids)


def monitored_barrier(
    group: ProcessGroup | None = None,
    timeout: Any = None,
    wait_all_ranks: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> None:
    """A barrier that names the ranks that did not arrive in time. Over gloo, and backends that have their own."""
    if not is_member(group):
        return
    where = facts(group)
    if where.group is None:
        alone("monitored_barrier", where, 0, False)
        return
    measure = Measure(prof, log_name, debug)
    run: Callable[..., Any] = _monitored_barrier
    issue("monitored_barrier", where, 0, 0, False, measure, run, where.group, timeout, wait_all_ranks)


def _monitored_barrier(group: Any, timeout: Any, wait_all_ranks: bool) -> None:
    if dist.get_backend(group) == "gloo":
        dist.monitored_barrier(group, timeout, wait_all_ranks)
    else:  # torch's function takes gloo only; other backends say themselves whether they have one
        group.monitored_barrier(timeout, wait_all_ranks)
