"""Choose what carries a group: one segment, a segment for each host with gloo between them, or gloo alone."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from ds_accel_cpu.comm import segment
from ds_accel_cpu.comm.hosts import Plan, host_key, plan
from ds_accel_cpu.comm.reduction import kernel_address
from ds_accel_cpu.comm.spanning import SpanningTransport
from ds_accel_cpu.comm.transport import LocalTransport, Transport
from ds_core.errors import DsError

__all__ = ["connect", "supports", "unusable"]

logger = logging.getLogger(__name__)


def supports(*, device_type: str, world_size: int, local_world_size: int | None) -> str | None:
    """Why this backend cannot serve a job; None when it can."""
    if device_type != "cpu":
        return f"it takes tensors of the CPU, not of {device_type}"
    return unusable() or None


@functools.cache
def unusable() -> str:
    """Why ranks cannot share memory here; empty when they can."""
    try:
        kernel_address()
    except DsError as error:
        return str(error)
    return segment.unusable()


def connect(store: Store, rank: int, size: int, timeout: timedelta, host: str | None) -> Transport:
    """What carries the group. Called on all ranks, which come to the same choice."""
    problem = unusable()
    key = host if host is not None else "" if problem else host_key()
    name = dist.get_rank() if dist.is_initialized() else rank
    prefix, members = segment.meet(store, rank, size, timeout, segment.Member(key, name, problem))
    layout = plan([member.host for member in members], rank)
    names = [member.name for member in members]
    reason = _reason_for_gloo(members, layout)
    if reason:
        logger.log(
            logging.WARNING if any(member.problem for member in members) else logging.INFO,
            "ranks %s exchange tensors over gloo alone: %s",
            names,
            reason,
        )
        apart = plan([str(each) for each in range(size)], rank)
        return SpanningTransport(store, prefix, rank, apart, None, timeout)
    local = None
    if len(layout.local) > 1 or layout.is_one_host:
        local = LocalTransport(segment.attach(store, prefix, layout, rank, names, kernel_address(), timeout))
    if layout.is_one_host and local is not None:
        return local
    return SpanningTransport(store, prefix, rank, layout, local, timeout)


def _reason_for_gloo(members: Sequence[segment.Member], layout: Plan) -> str:
    problems = [f"rank {member.name}: {member.problem}" for member in members if member.problem]
    if problems:
        return "; ".join(problems)
    if not layout.is_even:
        return f"hosts hold different numbers of them ({', '.join(str(len(host)) for host in layout.hosts)})"
    return ""
