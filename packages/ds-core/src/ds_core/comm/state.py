"""The one mutable thing of `ds_core.comm`: counter, logger, and how a group is named and measured."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch.distributed as dist

from ds_core.comm.counter import Counter
from ds_core.comm.profile import CommsLogger
from ds_core.errors import CommError

__all__ = ["WORLD_LABEL", "GroupFacts", "comms_logger", "counter", "facts", "is_member"]

WORLD_LABEL = "world"
counter = Counter()
comms_logger = CommsLogger()


class GroupFacts(NamedTuple):
    """What a collective needs to know of its group. `group` is None when no process group exists: one rank."""

    group: dist.ProcessGroup | None
    name: str
    size: int


_ALONE = GroupFacts(None, WORLD_LABEL, 1)


def facts(group: dist.ProcessGroup | None) -> GroupFacts:
    """The group meant by `group`: the default one for None, "alone" when nothing is initialised and nothing should be.

    Raises:
        CommError: several ranks were started but `init_distributed` was not called yet.
    """
    chosen = dist.GroupMember.WORLD if group is None else group
    if chosen is None:
        world = os.environ.get("WORLD_SIZE", "1")
        if world != "1":
            raise CommError(
                f"a collective was called before the process group exists, with WORLD_SIZE={world}: "
                "call ds_core.comm.init_distributed() (or ds_core.initialize) first on every rank"
            )
        return _ALONE
    name = chosen.group_name
    if chosen is dist.GroupMember.WORLD and not counter.has_label(name):
        counter.label(name, WORLD_LABEL)
    return GroupFacts(chosen, name, chosen.size())


def is_member(group: object) -> bool:
    """False for what torch gives ranks outside a new group."""
    return group is not dist.GroupMember.NON_GROUP_MEMBER
