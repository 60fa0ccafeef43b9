"""Point-to-point messages: names and arguments of torch.distributed, counted. `isend` and `irecv` return at once."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ds_core.comm.counter import current_scope
from ds_core.comm.failure import failure
from ds_core.comm.issue import Handle, Measure, issue
from ds_core.comm.state import GroupFacts, counter, facts
from ds_core.errors import CommError

__all__ = ["irecv", "isend", "recv", "send"]


def _where(op: str, group: ProcessGroup | None) -> GroupFacts:
    where = facts(group)
    if where.group is None:
        raise CommError(f"{op}: there is only one rank, so nobody to talk to; start with `ds run --nproc N`")
    return where


def send(
    tensor: torch.Tensor,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_dst: int | None = None,
) -> None:
    """Send `tensor` to global rank `dst` (or `group_dst` within the group) and wait until it may be reused."""
    where, payload = _where("send", group), tensor.numel() * tensor.element_size()
    measure = Measure(prof, log_name, debug)
    issue("send", where, payload, payload, False, measure, dist.send, tensor, dst, where.group, tag, group_dst)


def recv(
    tensor: torch.Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_src: int | None = None,
) -> int:
    """Receive into `tensor` from global rank `src` (None: from anyone); the global rank it came from."""
    where, payload = _where("recv", group), tensor.numel() * tensor.element_size()
    counter.add("recv", where.name, current_scope(), payload, 0)
    try:
        return int(dist.recv(tensor, src, where.group, tag, group_src))
    except (RuntimeError, ValueError) as error:
        raise failure("recv", where, error) from error


def isend(
    tensor: torch.Tensor,
    dst: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_dst: int | None = None,
) -> Handle | None:
    """Start sending `tensor`; it must not be changed before the handle's `wait`."""
    where, payload = _where("isend", group), tensor.numel() * tensor.element_size()
    measure = Measure(prof, log_name, debug)
    return issue("send", where, payload, payload, True, measure, dist.isend, tensor, dst, where.group, tag, group_dst)


def irecv(
    tensor: torch.Tensor,
    src: int | None = None,
    group: ProcessGroup | None = None,
    tag: int = 0,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
    group_src: int | None = None,
) -> Handle | None:
    """Start receiving into `tensor`; it holds the message after the handle's `wait`."""
    where, payload = _where("irecv", group), tensor.numel() * tensor.element_size()
    measure = Measure(prof, log_name, debug)
    return issue("recv", where, payload, 0, True, measure, dist.irecv, tensor, src, where.group, tag, group_src)
