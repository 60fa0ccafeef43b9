"""Groups over several hosts, where ranks are told to be on different ones: shared memory within, gloo between."""

from __future__ import annotations

import os
import signal
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch._C import _distributed_c10d as c10d
from torch.distributed import ReduceOp

from ds_core.testing import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

LARGE = 100_003


def on_hosts(hosts: str) -> Any:
    """A group of all ranks, where ranks with equal letters believe to be on one host."""
    from ds_accel_cpu.comm.group import ShmGroup

    store = c10d.PrefixStore(f"hosts/{hosts}", dist.distributed_c10d._get_default_store())
    return ShmGroup(store, dist.get_rank(), dist.get_world_size(), timedelta(seconds=20), host=hosts[dist.get_rank()])


def options(kind: Any, root: int = 0, op: Any = None) -> Any:
    made = kind()
    if op is not None:
        made.reduceOp = op
    if hasattr(made, "rootRank"):
        made.rootRank = root
    made.asyncOp = False
    return made


def reduce_both(hosts: str) -> str:
    """Whole numbers have one sum in any order, so gloo's result is the result."""
    group, rank, world = on_hosts(hosts), dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.int64, torch.bfloat16):
        for numel in (0, 1, 7, LARGE):
            source = (torch.arange(numel * world) % 7 + rank).to(dtype)
            for op in (ReduceOp.SUM, ReduceOp.MAX):
                ours, gloos = source.clone(), source.clone()
                group.allreduce([ours], options(c10d.AllreduceOptions, op=op))
                dist.all_reduce(gloos, op)
                assert torch.equal(ours, gloos), (dtype, numel, op)
                group.reduce([ours := source.clone()], options(c10d.ReduceOptions, 1, op))
                assert torch.equal(ours, gloos if rank == 1 else source), (dtype, numel, op)
                piece = torch.empty(numel, dtype=dtype)
                group.reduce_scatter_single(piece, source, options(c10d.ReduceScatterOptions, op=op))
                assert torch.equal(piece, gloos.view(world, -1)[rank]), (dtype, numel, op)
    mean = torch.full((5,), float(rank))
    group.allreduce([mean], options(c10d.AllreduceOptions, op=ReduceOp.AVG))
    assert (mean == (world - 1) / 2).all()
    return type(group.transport).__name__


def copy_both(hosts: str) -> None:
    group, rank, world = on_hosts(hosts), dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.bool, torch.int16):
        for numel in (0, 1, 7, LARGE):
            every = [((torch.arange(numel) + each) % 3).to(dtype) for each in range(world)]
            out = torch.empty(numel * world, dtype=dtype)
            group.all_gather_single(out, every[rank], options(c10d.AllgatherOptions))
            assert torch.equal(out, torch.cat(every))
            for root in range(world):
                mine = every[rank].clone()
                group.broadcast([mine], options(c10d.BroadcastOptions, root))
                assert torch.equal(mine, every[root])
            got = [[torch.empty_like(each) for each in every]] if rank == 2 else []
            group.gather(got, [every[rank]], options(c10d.GatherOptions, 2))
            assert not got or all(map(torch.equal, got[0], every))
            piece = torch.empty_like(every[rank])
            group.scatter([piece], [every] if rank == 1 else [], options(c10d.ScatterOptions, 1))
            assert torch.equal(piece, every[rank])
    sizes = [[(sender + 2 * receiver) % 4 for receiver in range(world)] for sender in range(world)]
    source = torch.cat([torch.full((count, 2), 10 * rank + to) for to, count in enumerate(sizes[rank])])
    took = [sizes[sender][rank] for sender in range(world)]
    out = torch.empty(sum(took), 2, dtype=torch.int64)
    group.all_to_all_single(out, source, took, sizes[rank], options(c10d.AllToAllOptions))
    assert torch.equal(
        out, torch.cat([torch.full((count, 2), 10 * sender + rank) for sender, count in enumerate(took)])
    )
    group.barrier(options(c10d.BarrierOptions))


def talk(hosts: str) -> None:
    group, rank, world = on_hosts(hosts), dist.get_rank(), dist.get_world_size()
    works = [group.allreduce([torch.ones(number + 1)]) for number in range(5)]
    out, back = torch.full((LARGE,), float(rank)), torch.empty(LARGE)
    for step in range(1, world):
        pair = [group.send([out], (rank + step) % world, step), group.recv([back], (rank - step) % world, step)]
        for work in pair:
            work.wait()
        assert (back == (rank - step) % world).all()
    for number, work in enumerate(works):
        work.wait()
        assert (work.get_future().wait()[0] == world).all(), number
    if hosts in ("aabb", "abab"):
        with pytest.raises(ValueError, match="name the source, or make the group with DS_COMM_BACKEND=gloo"):
            group.recv_anysource([back], 0)


@pytest.mark.parametrize("hosts", ["aabb", "abab", "abba"])
def test_reductions_over_two_hosts(hosts: str) -> None:
    assert set(run_ranks(reduce_both, 4, hosts)) == {"SpanningTransport"}


@pytest.mark.parametrize("hosts", ["aabb", "abab"])
def test_copies_over_two_hosts(hosts: str) -> None:
    run_ranks(copy_both, 4, hosts)


@pytest.mark.parametrize("hosts", ["aabb", "abab"])
def test_messages_and_asynchronous_calls_over_two_hosts(hosts: str) -> None:
    run_ranks(talk, 4, hosts)


@pytest.mark.parametrize("hosts", ["aaab", "abc"])
def test_hosts_with_other_numbers_of_ranks_and_with_one_each(hosts: str) -> None:
    run_ranks(reduce_both, len(hosts), hosts)
    run_ranks(copy_both, len(hosts), hosts)
    run_ranks(talk, len(hosts), hosts)


def lose_one() -> str:
    group = on_hosts("aabb")
    tensor = torch.ones(1000)
    group.allreduce([tensor]).wait()
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RuntimeError) as caught:
        for _ in range(1000):
            group.allreduce([tensor]).wait()
    return str(caught.value)


def test_a_rank_killed_on_one_of_two_hosts_ends_the_others() -> None:
    results = run_ranks(lose_one, 4, dies={1}, timeout_s=60)
    assert "rank 1 is gone" in results[0]
