"""Four ranks carry out one random program of calls over shared memory and over gloo, and hold the same tensors.

Environment:
    DS_SHM_PROGRAM_STEPS: calls of the program; a few hundred by default, 10000 for a thorough run.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

from ds_core.testing import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

STEPS = int(os.environ.get("DS_SHM_PROGRAM_STEPS", "300"))
WORLD = 4
MEMBERS = ([0, 1, 2, 3], [0, 1], [1, 2, 3], [0, 3], [1, 2])
DTYPES = (torch.float32, torch.bfloat16, torch.int32, torch.int64, torch.uint8)
SIZES = (0, 1, 5, 100, 4097, 70_000)


class Step(NamedTuple):
    """One call, equal on all ranks."""

    op: str
    members: int
    dtype: torch.dtype
    numel: int
    root: int
    seed: int
    is_async: bool


def program(steps: int, seed: int) -> list[Step]:
    source = random.Random(seed)
    return [
        Step(
            source.choice(list(CALLS)),
            source.randrange(len(MEMBERS)),
            source.choice(DTYPES),
            source.choice(SIZES) + source.randrange(3),
            source.randrange(WORLD),
            source.randrange(1 << 30),
            source.random() < 0.4,
        )
        for _ in range(steps)
    ]


class Side:
    """The groups of one backend."""

    def __init__(self, backend: str) -> None:
        made = [dist.new_group(each, backend=backend, timeout=timedelta(seconds=50)) for each in MEMBERS]
        self.groups: list[Any] = made


Result = tuple[Any, list[torch.Tensor]]
"""What to wait for (None: nothing), and the tensors that are written."""


def values(step: Step, rank: int, numel: int) -> torch.Tensor:
    """Small whole numbers: their sums are exact in every dtype and order."""
    return ((torch.arange(numel) * 31 + step.seed + 7 * rank) % 5).to(step.dtype)


def all_reduce(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    tensor = values(step, rank, step.numel)
    op = (dist.ReduceOp.SUM, dist.ReduceOp.MAX, dist.ReduceOp.MIN)[step.seed % 3]
    return dist.all_reduce(tensor, op, group, step.is_async), [tensor]


def reduce(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    tensor, root = values(step, rank, step.numel), ranks[step.root % len(ranks)]
    work = dist.reduce(tensor, root, group=group, async_op=step.is_async)
    return work, [tensor] if rank == root else []  # elsewhere gloo leaves parts of its work


def broadcast(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    tensor = values(step, rank, step.numel)
    return dist.broadcast(tensor, ranks[step.root % len(ranks)], group, step.is_async), [tensor]


def all_gather(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    out = torch.empty(step.numel * len(ranks), dtype=step.dtype)
    return dist.all_gather_into_tensor(out, values(step, rank, step.numel), group, step.is_async), [out]


def all_gather_list(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    out = [torch.empty(step.numel, dtype=step.dtype) for _ in ranks]
    return dist.all_gather(out, values(step, rank, step.numel), group, step.is_async), out


def reduce_scatter(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    out, source = torch.empty(step.numel, dtype=step.dtype), values(step, rank, step.numel * len(ranks))
    return dist.reduce_scatter_tensor(out, source, group=group, async_op=step.is_async), [out]


def gather(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    root = ranks[step.root % len(ranks)]
    out = [torch.empty(step.numel, dtype=step.dtype) for _ in ranks] if rank == root else None
    return dist.gather(values(step, rank, step.numel), out, root, group, step.is_async), out or []


def scatter(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    root, out = ranks[step.root % len(ranks)], torch.empty(step.numel, dtype=step.dtype)
    pieces = [values(step, 10 * each, step.numel) for each in ranks] if rank == root else None
    return dist.scatter(out, pieces, root, group, step.is_async), [out]


def all_to_all(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    def rows(sender: int, receiver: int) -> int:
        return step.numel * ((step.seed + 3 * sender + receiver) % 4) // 3

    sent, took = [rows(rank, each) for each in ranks], [rows(each, rank) for each in ranks]
    out = torch.empty(sum(took), dtype=step.dtype)
    source = values(step, rank, sum(sent))
    return dist.all_to_all_single(out, source, took, sent, group, step.is_async), [out]


class Together:
    """Several works as one, waited for in an order of their own."""

    def __init__(self, works: list[Any]) -> None:
        self._works = works

    def wait(self) -> None:
        for work in reversed(self._works):
            work.wait()


def messages(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    """Three messages to the next rank, received in another order than sent."""
    place, works, out = ranks.index(rank), [], []
    tags = random.Random(step.seed).sample(range(3), 3)
    for tag in range(3):
        message = values(step, rank + tag, step.numel + tag)
        works.append(dist.isend(message, ranks[(place + 1) % len(ranks)], group, tag))
    for tag in tags:
        out.append(torch.empty(step.numel + tag, dtype=step.dtype))
        works.append(dist.irecv(out[-1], ranks[place - 1], group, tag))
    together = Together(works)
    if step.is_async:
        return together, out
    together.wait()
    return None, out


def barrier(step: Step, group: Any, ranks: list[int], rank: int) -> Result:
    return dist.barrier(group, step.is_async), []


CALLS: dict[str, Callable[[Step, Any, list[int], int], Result]] = {
    call.__name__: call
    for call in (
        all_reduce,
        reduce,
        broadcast,
        all_gather,
        all_gather_list,
        reduce_scatter,
        gather,
        scatter,
        all_to_all,
        messages,
        barrier,
    )
}


def carry_out(steps: int, seed: int) -> int:
    from ds_core.comm.backends import choose_backend
    from ds_core.comm.discovery import discover

    choose_backend("shm", {}, discover({}))
    rank, ours, gloos = dist.get_rank(), Side("shm"), Side("gloo")
    under_way: list[tuple[int, Step, Any, list[torch.Tensor], list[torch.Tensor]]] = []
    compared = 0

    def settle(down_to: int) -> None:
        nonlocal compared
        while len(under_way) > down_to:
            number, step, work, mine, theirs = under_way.pop(0)
            if work is not None:
                work.wait()
            assert all(map(torch.equal, mine, theirs)), (number, step)
            compared += len(mine)

    for number, step in enumerate(program(steps, seed)):
        ranks = MEMBERS[step.members]
        if rank in ranks:
            work, mine = CALLS[step.op](step, ours.groups[step.members], ranks, rank)
            theirs_work, theirs = CALLS[step.op](step, gloos.groups[step.members], ranks, rank)
            if theirs_work is not None:
                theirs_work.wait()
            under_way.append((number, step, work, mine, theirs))
        settle(5)
    settle(0)
    return compared


def test_a_random_program_gives_what_gloo_gives() -> None:
    assert min(run_ranks(carry_out, WORLD, STEPS, 1, timeout_s=60 + STEPS)) > STEPS // 4
