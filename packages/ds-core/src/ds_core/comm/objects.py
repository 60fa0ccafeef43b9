"""Small values between ranks: JSON for what ds-core itself says, torch's object collectives for anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

from ds_core.comm.counter import current_scope
from ds_core.comm.failure import failure
from ds_core.comm.pieces import all_gather_into_tensor
from ds_core.comm.ranks import get_all_ranks_from_group
from ds_core.comm.state import counter, facts, is_member
from ds_core.errors import CommError

__all__ = ["agree", "all_gather_object", "broadcast_object_list", "control_device", "gather_json"]


def gather_json(value: Any, group: ProcessGroup | None = None) -> list[Any]:
    """Every rank's `value`, which must be JSON, in group order. Called on all ranks of the group.

    Two collectives: the sizes, then the texts padded to the longest.
    """
    where = facts(group)
    data = json.dumps(value, separators=(",", ":")).encode()
    if where.group is None:
        return [json.loads(data)]
    device = control_device(where.group)
    size = torch.tensor([len(data)], dtype=torch.int64, device=device)
    sizes = torch.empty(where.size, dtype=torch.int64, device=device)
    all_gather_into_tensor(sizes, size, where.group)
    lengths = sizes.tolist()
    longest = max(lengths)
    mine = torch.zeros(longest, dtype=torch.uint8)
    mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    texts = torch.empty(where.size * longest, dtype=torch.uint8, device=device)
    all_gather_into_tensor(texts, mine.to(device), where.group)
    raw = texts.cpu().numpy().tobytes()
    return [json.loads(raw[rank * longest : rank * longest + length]) for rank, length in enumerate(lengths)]


def agree(value: Any, what: str, group: ProcessGroup | None = None) -> None:
    """Make sure every rank of the group has the same JSON `value`. Called on all ranks of the group.

    Raises:
        CommError: on every rank when they differ, with a table of who has what.
    """
    values = [json.dumps(each, sort_keys=True) for each in gather_json(value, group)]
    if len(set(values)) == 1:
        return
    lines = [f"  rank {rank}: {text}" for rank, text in zip(get_all_ranks_from_group(group), values, strict=True)]
    raise CommError("\n".join([f"the ranks do not agree on {what}:", *lines, "it must be the same on all of them"]))


def all_gather_object(
    object_list: list[Any],
    obj: Any,
    group: ProcessGroup | None = None,
    prof: bool = False,
    log_name: str | None = None,
    debug: bool | None = None,
) -> None:
    """Collect every rank's `obj` in `object_list`. torch encodes the objects; use it between trusted ranks only."""
    if not is_member(group):
        return
    where = facts(group)
    counter.add("all_gather_object", where.name, current_scope(), 0, 0)
    if where.group is None:
        object_list[0] = obj
        return
    _guarded("all_gather_object", group, lambda: dist.all_gather_object(object_list, obj, where.group))


def broadcast_object_list(
    object_list: list[Any],
    src: int | None = None,
    group: ProcessGroup | None = None,
    device: torch.device | None = None,
    group_src: int | None = None,
) -> None:
    """Copy the objects of rank `src` to all. torch encodes the objects; use it between trusted ranks only."""
    if not is_member(group):
        return
    where = facts(group)
    counter.add("broadcast_object_list", where.name, current_scope(), 0, 0)
    if where.group is None:
        return
    source = 0 if src is None and group_src is None else src

    def run() -> None:
        dist.broadcast_object_list(object_list, source, where.group, device, group_src)

    _guarded("broadcast_object_list", group, run)


def _guarded(op: str, group: ProcessGroup | None, run: Callable[[], Any]) -> None:
    try:
        run()
    except (RuntimeError, ValueError) as error:
        raise failure(op, facts(group), error) from error


def control_device(group: ProcessGroup | None = None) -> torch.device:
    """A device this group can talk from; the host when it can, or is alone."""
    group = facts(group).group
    if group is None:
        return torch.device("cpu")
    devices = [torch.device(device) for device in group._device_types]
    return next((device for device in devices if device.type == "cpu"), devices[0])
