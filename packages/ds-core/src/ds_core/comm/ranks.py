"""Who is in which group: ranks, sizes, members. One rank of one before (or without) `init_distributed`."""

from __future__ import annotations

import os

import torch.distributed as dist
from torch.distributed import ProcessGroup

__all__ = [
    "get_all_ranks_from_group",
    "get_global_rank",
    "get_local_rank",
    "get_local_world_size",
    "get_rank",
    "get_world_group",
    "get_world_size",
    "is_available",
    "is_initialized",
]


def is_available() -> bool:
    """Whether this torch has distributed support."""
    return bool(dist.is_available())


def is_initialized() -> bool:
    """Whether a default process group exists."""
    return bool(dist.is_initialized())


def get_rank(group: object = None) -> int:
    """This process's rank in the `ProcessGroup` (None: the world); -1 outside it; 0 when there is no process group."""
    if not isinstance(group, ProcessGroup):
        if group is not None:
            return -1
        return int(dist.get_rank()) if dist.is_initialized() else 0
    return int(group.rank())


def get_world_size(group: object = None) -> int:
    """Ranks in the `ProcessGroup` (None: the world); -1 outside it; 1 when there is no process group."""
    if not isinstance(group, ProcessGroup):
        if group is not None:
            return -1
        return int(dist.get_world_size()) if dist.is_initialized() else 1
    return int(group.size())


def get_local_rank() -> int:
    """This process's number among those on its machine, from LOCAL_RANK (`init_distributed` sets it)."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_local_world_size() -> int:
    """Number of processes on this machine, from LOCAL_WORLD_SIZE; 1 where nothing says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def get_world_group() -> ProcessGroup | None:
    """The group of all ranks; None when there is no process group."""
    group: ProcessGroup | None = dist.group.WORLD
    return group


def get_global_rank(group: ProcessGroup | None, group_rank: int) -> int:
    """The world rank of the group's `group_rank`-th member."""
    if group is None or not dist.is_initialized():
        return group_rank
    return int(dist.get_global_rank(group, group_rank))


def get_all_ranks_from_group(group: ProcessGroup | None = None) -> list[int]:
    """World ranks of the group's members, in group order."""
    if not dist.is_initialized():
        return [0]
    return [int(rank) for rank in dist.get_process_group_ranks(group if group is not None else dist.group.WORLD)]
