"""Collectives that gather, scatter or exchange pieces: names and arguments of torch.distributed, counted.

As in `collectives`: called on all ranks of the group, ``async_op=True`` returns a handle, one rank is an identity.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, ReduceOp

from ds_core.comm.counter import sent_ring
from ds_core.comm.issue import Measure, Waitable, alone, issue, joined, nbytes
from ds_core.comm.ordered import OrderedReduceScatter, serves
from ds_core.comm.state import facts, is_member
from ds_core.errors import CommError

__all__ = [
    "all_gather",
    "all_gather_coalesced",
    "all_gather_into_tensor",
    "all_to_all",
    "all_to_all_single",
    "allgather_fn",
    "gather",
    "reduce_scatter",
    "reduce_scatter_fn",
    "reduce_scatter_tensor",
    "scatter",
]

# torch 2.13 renamed these two and warns at the old names; 2.10 to 2.12 know the old ones only.
_all_gather_flat: Callable[..., Any] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
_reduce_scatter_flat: Callable[..., Any] = getattr(dist, "reduce_scatter_single", dist.reduce_scatter_tensor)


def _copy(target: torch.Tensor, source: torch.Tensor) -> None:
    target.copy_(source.reshape(target.shape))


def all_gather_into_tensor(
    output_tensor: torch.Tensor,
    input_tensor: torch.Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Concatenate every rank's `input_tensor` in `output_tensor`, in group order."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = output_tensor.numel() * output_tensor.element_size()
    if where.group is None:
        _copy(output_tensor, input_tensor)
        return alone("all_gather", where, payload, async_op)
    return issue(
        "all_gather",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        _all_gather_flat,
        output_tensor,
        input_tensor,
        where.group,
        async_op,
    )


allgather_fn = all_gather_into_tensor


def all_gather(
    tensor_list: list[torch.Tensor],
    tensor: torch.Tensor,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Collect every rank's `tensor` in `tensor_list`, in group order."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = nbytes(tensor_list)
    if where.group is None:
        _copy(tensor_list[0], tensor)
        return alone("all_gather", where, payload, async_op)
    return issue(
        "all_gather",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.all_gather,
        tensor_list,
        tensor,
        where.group,
        async_op,
    )


def all_gather_coalesced(
    output_tensors: Sequence[torch.Tensor],
    input_tensors: Sequence[torch.Tensor],
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """`all_gather_into_tensor` of several pairs, all under way at once."""
    if len(output_tensors) != len(input_tensors):
        raise CommError(f"all_gather_coalesced: {len(output_tensors)} outputs for {len(input_tensors)} inputs")
    handles = [
        all_gather_into_tensor(output, source, group, True, prof, log_name, debug)
        for output, source in zip(output_tensors, input_tensors, strict=True)
    ]
    return joined(handles, async_op)


def reduce_scatter_tensor(
    output_tensor: torch.Tensor,
    input_tensor: torch.Tensor,
    op: Any = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Reduce `input_tensor` over the group and keep this rank's piece of it in `output_tensor`."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = input_tensor.numel() * input_tensor.element_size()
    if where.group is None:
        _copy(output_tensor, input_tensor)
        return alone("reduce_scatter", where, payload, async_op)
    if serves(input_tensor, op, where.group):
        run: Callable[..., Any] = _reduce_scatter_ordered
    else:
        run = _reduce_scatter_flat
    return issue(
        "reduce_scatter",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        run,
        output_tensor,
        input_tensor,
        op,
        where.group,
        async_op,
    )


def _reduce_scatter_ordered(
    output: torch.Tensor, source: torch.Tensor, _op: Any, group: ProcessGroup, async_op: bool
) -> OrderedReduceScatter | None:
    work = OrderedReduceScatter(output, source.view(-1), group)
    if async_op:
        return work
    work.wait()
    return None


reduce_scatter_fn = reduce_scatter_tensor


def reduce_scatter(
    output: torch.Tensor,
    input_list: list[torch.Tensor],
    op: Any = ReduceOp.SUM,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Reduce a list of tensors, one for each rank, over the group and keep this rank's in `output`."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = nbytes(input_list)
    if where.group is None:
        _copy(output, input_list[0])
        return alone("reduce_scatter", where, payload, async_op)
    return issue(
        "reduce_scatter",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.reduce_scatter,
        output,
        input_list,
        op,
        where.group,
        async_op,
    )


def all_to_all_single(
    output: torch.Tensor,
    input: torch.Tensor,
    output_split_sizes: list[int] | None = None,
    input_split_sizes: list[int] | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Send the i-th piece of `input` (along dim 0) to rank i of the group and receive into `output` likewise."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = input.numel() * input.element_size()
    if where.group is None:
        _copy(output, input)
        return alone("all_to_all", where, payload, async_op)
    own = payload // where.size
    if input_split_sizes:
        rows = sum(input_split_sizes)
        own = payload * input_split_sizes[where.group.rank()] // rows if rows else 0
    return issue(
        "all_to_all",
        where,
        payload,
        payload - own,
        async_op,
        Measure(prof, log_name, debug),
        dist.all_to_all_single,
        output,
        input,
        output_split_sizes,
        input_split_sizes,
        where.group,
        async_op,
    )


def all_to_all(
    output_tensor_list: list[torch.Tensor],
    input_tensor_list: list[torch.Tensor],
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> Waitable | None:
    """Send the i-th tensor of the input list to rank i of the group and receive into the output list likewise."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = nbytes(input_tensor_list)
    if where.group is None:
        _copy(output_tensor_list[0], input_tensor_list[0])
        return alone("all_to_all", where, payload, async_op)
    return issue(
        "all_to_all",
        where,
        payload,
        payload - nbytes([input_tensor_list[where.group.rank()]]),
        async_op,
        Measure(prof, log_name, debug),
        dist.all_to_all,
        output_tensor_list,
        input_tensor_list,
        where.group,
        async_op,
    )


def gather(
    tensor: torch.Tensor,
    gather_list: list[torch.Tensor] | None = None,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_dst: int | None = None,
) -> Waitable | None:
    """Collect every rank's `tensor` in `gather_list` of global rank `dst` (default 0)."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = tensor.numel() * tensor.element_size() * where.size
    if where.group is None:
        if gather_list:
            _copy(gather_list[0], tensor)
        return alone("gather", where, payload, async_op)
    return issue(
        "gather",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.gather,
        tensor,
        gather_list,
        dst,
        where.group,
        async_op,
        group_dst,
    )


def scatter(
    tensor: torch.Tensor,
    scatter_list: list[torch.Tensor] | None = None,
    src: int | None = None,
    group: ProcessGroup | None = None,
    async_op: bool = False,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_src: int | None = None,
) -> Waitable | None:
    """Hand out `scatter_list` of global rank `src` (default 0), one tensor to each rank."""
    if not is_member(group):
        return None
    where = facts(group)
    payload = tensor.numel() * tensor.element_size() * where.size
    if where.group is None:
        if scatter_list:
            _copy(tensor, scatter_list[0])
        return alone("scatter", where, payload, async_op)
    return issue(
        "scatter",
        where,
        payload,
        sent_ring(payload, where.size),
        async_op,
        Measure(prof, log_name, debug),
        dist.scatter,
        tensor,
        scatter_list,
        src,
        where.group,
        async_op,
        group_src,
    )
