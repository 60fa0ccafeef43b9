"""Turn a failed collective into an error that says who, what and where, on every rank of the group.

Ranks that fail tell each other where they were, through the store they met at, so a mismatch (one rank in another
layer, one call behind, one gone) is readable from any rank's message.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import torch.distributed as dist

from ds_core.comm.counter import current_scope
from ds_core.comm.state import GroupFacts, counter
from ds_core.errors import CommError

__all__ = ["failure"]

EXCHANGE_S = 1.0
"""How long a failing rank waits for the others' reports."""


def failure(
    op: str, where: GroupFacts, error: BaseException, *, call: int | None = None, scope: str | None = None
) -> CommError:
    """The `CommError` for `error`, raised by `op` on the group. Waits at most `EXCHANGE_S` for the other ranks.

    `call` and `scope` say where an asynchronous call was issued; by default where this rank is now.
    """
    group = where.group
    number = counter.sequence(where.name) if call is None else call
    scope = current_scope() if scope is None else scope
    cause = str(error).strip().splitlines()
    head = (
        f"{op} failed on rank {_rank()} (group {counter.label_of(where.name)!r} of {where.size} ranks, call {number} "
        f"on this group, scope {scope or '-'}): {cause[0] if cause else type(error).__name__}"
    )
    if group is None or where.size == 1 or not isinstance(error, RuntimeError):
        return CommError(head)
    reports = _exchange(group, where, {"op": op, "call": number, "scope": scope})
    lines = [f"  rank {rank}: {_position(reports.get(rank))}" for rank in dist.get_process_group_ranks(group)]
    return CommError("\n".join([head, "where each rank of the group was:", *lines, _advice(reports, where)]))


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _position(report: dict[str, Any] | None) -> str:
    if report is None:
        return "no report: it has not failed (still computing, or waiting elsewhere), or it is gone"
    return f"{report['op']}, call {report['call']}, scope {report['scope'] or '-'}"


def _advice(reports: dict[int, dict[str, Any]], where: GroupFacts) -> str:
    if len({(report["op"], report["call"]) for report in reports.values()}) > 1:
        return "the ranks called different collectives: look for a branch that depends on the rank or on its data"
    if len(reports) < where.size:
        return "look first at the log of the ranks without a report: an exception there, or a kill (memory) on its host"
    return "all ranks were in the same call: look for different sizes or dtypes, or at the network between them"


def _exchange(group: dist.ProcessGroup, where: GroupFacts, mine: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Reports of the ranks that failed on this group within `EXCHANGE_S`, this one's included."""
    reports: dict[int, dict[str, Any]] = {_rank(): mine}
    ranks = dist.get_process_group_ranks(group)

    def talk() -> None:
        try:
            store = dist.distributed_c10d._get_default_store()
            prefix = f"ds_core/failed/{where.name}"
            store.set(f"{prefix}/{_rank()}", json.dumps(mine))
            end = time.monotonic() + EXCHANGE_S
            while len(reports) < len(ranks) and time.monotonic() < end:
                for rank in ranks:
                    if rank not in reports and store.check([f"{prefix}/{rank}"]):
                        reports[rank] = json.loads(store.get(f"{prefix}/{rank}"))
                time.sleep(0.02)
        except (RuntimeError, ValueError):
            return  # the store went down with its host: the message says which ranks did not report

    # In a thread of its own because a store whose host hangs would block for its whole timeout.
    thread = threading.Thread(target=talk, daemon=True, name="ds-comm-failure")
    thread.start()
    thread.join(2 * EXCHANGE_S)
    return dict(reports)
