"""Every collective over shared memory gives what the same call over gloo gives, or what arithmetic says."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import ReduceOp

from ds_core.comm.ordered import add_in_order
from ds_core.testing import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
    pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning"),
]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int8,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.bool,
)
SIZES = (0, 1, 3, 257, 16_385, 300_007)
"""Nothing, odd ones, and one of some rounds."""
LONG = 1_300_003
"""A tensor of more rounds than there are slots; of one dtype."""


def shm(ranks: list[int] | None = None) -> dist.ProcessGroup:
    """A group over shared memory beside the gloo group of `run_ranks`."""
    from ds_core.comm.backends import choose_backend
    from ds_core.comm.discovery import discover

    choose_backend("shm", {}, discover({}))
    group: dist.ProcessGroup = dist.new_group(ranks, backend="shm", timeout=timedelta(seconds=20))
    return group


def values(numel: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        return torch.randn(numel, generator=generator).to(dtype)
    if dtype is torch.bool:
        return torch.randint(0, 2, (numel,), generator=generator).bool()
    return torch.randint(0, 5, (numel,), generator=generator).to(dtype)


def in_rank_order(tensors: list[torch.Tensor], op: ReduceOp.RedOpType) -> torch.Tensor:
    """The reduction from the first tensor to the last, in float32 where they are narrower, rounded once."""
    narrow = tensors[0].dtype in (torch.bfloat16, torch.float16)
    wide = [each.float() if narrow else each for each in tensors]
    steps: dict[Any, Callable[..., torch.Tensor]] = {
        ReduceOp.SUM: torch.logical_or if tensors[0].dtype is torch.bool else torch.add,
        ReduceOp.AVG: torch.add,
        ReduceOp.PRODUCT: torch.logical_and if tensors[0].dtype is torch.bool else torch.mul,
        ReduceOp.MIN: torch.minimum,
        ReduceOp.MAX: torch.maximum,
        ReduceOp.BAND: torch.bitwise_and,
        ReduceOp.BOR: torch.bitwise_or,
        ReduceOp.BXOR: torch.bitwise_xor,
    }
    total = wide[0]
    for each in wide[1:]:
        total = steps[op](total, each)
    return (total / len(tensors) if op == ReduceOp.AVG else total).to(tensors[0].dtype)


def reductions(dtype: torch.dtype) -> list[ReduceOp.RedOpType]:
    both = [ReduceOp.SUM, ReduceOp.PRODUCT, ReduceOp.MIN, ReduceOp.MAX]
    return [*both, ReduceOp.AVG] if dtype.is_floating_point else [*both, ReduceOp.BAND, ReduceOp.BOR, ReduceOp.BXOR]


def reduce_everything() -> int:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    done = 0
    for dtype in DTYPES:
        for numel in (*SIZES, LONG) if dtype is torch.float32 else SIZES:
            every = [values(numel, dtype, each) for each in range(world)]
            blocks = [values(numel * world, dtype, each) for each in range(world)]
            for op in reductions(dtype) if numel < 1000 else [ReduceOp.SUM]:
                expected = in_rank_order(every, op)
                mine = every[rank].clone()
                dist.all_reduce(mine, op, group)
                assert torch.equal(mine, expected), (dtype, numel, op)
                root = numel % world
                mine = every[rank].clone()
                dist.reduce(mine, root, op, group)
                assert torch.equal(mine, expected if rank == root else every[rank]), (dtype, numel, op)
                piece = torch.empty(numel, dtype=dtype)
                dist.reduce_scatter_tensor(piece, blocks[rank], op, group)
                expected = in_rank_order([each.view(world, -1)[rank] for each in blocks], op)
                assert torch.equal(piece, expected), (dtype, numel, op)
                piece = torch.empty(numel, dtype=dtype)
                dist.reduce_scatter(piece, list(blocks[rank].view(world, -1).unbind(0)), op, group)
                assert torch.equal(piece, expected), (dtype, numel, op)
                done += 1
    return done


@pytest.mark.parametrize("world", [2, 4])
def test_reductions_go_in_rank_order_and_round_once(world: int) -> None:
    assert min(run_ranks(reduce_everything, world)) > len(DTYPES) * len(SIZES)


def copy_everything() -> int:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    done = 0
    for dtype in (*DTYPES, torch.complex64, torch.int16):
        for numel in (*SIZES, LONG) if dtype is torch.float32 else SIZES:
            every = [values(numel, torch.float32, each).to(dtype) for each in range(world)]
            flat, root = torch.cat(every), (numel + 1) % world
            out = torch.empty_like(flat)
            dist.all_gather_into_tensor(out, every[rank], group)
            assert torch.equal(out, flat), (dtype, numel)
            listed = [torch.empty_like(each) for each in every]
            dist.all_gather(listed, every[rank], group)
            assert all(map(torch.equal, listed, every)), (dtype, numel)
            mine = every[rank].clone()
            dist.broadcast(mine, root, group)
            assert torch.equal(mine, every[root]), (dtype, numel)
            gathered = [torch.empty_like(each) for each in every] if rank == root else None
            dist.gather(every[rank], gathered, root, group)
            assert gathered is None or all(map(torch.equal, gathered, every)), (dtype, numel)
            piece = torch.empty_like(every[rank])
            dist.scatter(piece, every if rank == root else None, root, group)
            assert torch.equal(piece, every[rank]), (dtype, numel)
            done += 1
    return done


@pytest.mark.parametrize("world", [2, 4])
def test_copies_are_exact(world: int) -> None:
    assert min(run_ranks(copy_everything, world)) > 0


def exchange() -> None:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    for numel in (*SIZES, LONG):
        source = torch.arange(world * numel) + 1000 * rank
        out = torch.empty_like(source)
        dist.all_to_all_single(out, source, group=group)
        expected = torch.stack([torch.arange(rank * numel, (rank + 1) * numel) + 1000 * each for each in range(world)])
        assert torch.equal(out, expected.view(-1)), numel
        # rank r sends numel * (r + 2 * i) // 4 rows of 3 to rank i, which is 0 to some
        sizes = [[numel * ((sender + 2 * receiver) % 5) // 4 for receiver in range(world)] for sender in range(world)]
        pieces = [
            [torch.full((count, 3), float(10 * sender + receiver)) for receiver, count in enumerate(row)]
            for sender, row in enumerate(sizes)
        ]
        took = [sizes[sender][rank] for sender in range(world)]
        rows = torch.empty(sum(took), 3)
        dist.all_to_all_single(rows, torch.cat(pieces[rank]), took, sizes[rank], group=group)
        expected = torch.cat([pieces[sender][rank] for sender in range(world)])
        assert torch.equal(rows, expected), numel
        outputs = [torch.empty(count, 3) for count in took]
        dist.all_to_all(outputs, pieces[rank], group=group)
        assert torch.equal(torch.cat(outputs), expected), numel


@pytest.mark.parametrize("world", [2, 4])
def test_all_to_all_with_even_and_uneven_sizes(world: int) -> None:
    run_ranks(exchange, world)


def use_strides() -> None:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    wide = torch.zeros(64, 65)
    wide[:, ::5] = rank + 1.0
    dist.all_reduce(wide[:, ::5], group=group)
    assert (wide[:, ::5] == world * (world + 1) / 2).all()
    assert (wide[:, 1::5] == 0).all()
    turned = torch.arange(12.0).view(3, 4).t() + rank
    every = [torch.zeros(3, 4).t() for _ in range(world)]
    dist.all_gather(every, turned, group=group)
    assert all(torch.equal(each, turned - rank + other) for other, each in enumerate(every))
    target = torch.zeros(8, 8).t()
    dist.broadcast(target if rank else torch.arange(64.0).view(8, 8), 0, group)
    assert rank == 0 or torch.equal(target, torch.arange(64.0).view(8, 8))
    message = torch.arange(20.0)[::2] + rank
    got = torch.zeros(20)[::2]
    works = [dist.isend(message, (rank + 1) % world, group), dist.irecv(got, (rank - 1) % world, group)]
    for work in works:
        work.wait()
    assert torch.equal(got, torch.arange(20.0)[::2] + (rank - 1) % world)


def test_strided_tensors_are_read_and_written_in_place() -> None:
    run_ranks(use_strides, 2)


def compare_with_core() -> None:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    for dtype in (torch.float32, torch.bfloat16):
        for numel in (5 * world, 64 * 1024 * world):
            every = [values(numel, dtype, each) * 10 ** (each - 1) for each in range(world)]
            expected = torch.empty(numel, dtype=dtype)
            add_in_order(expected, torch.stack(every))
            mine = every[rank].clone()
            dist.all_reduce(mine, group=group)
            assert torch.equal(mine, expected), (dtype, numel)


def test_sums_are_those_of_core_to_the_bit() -> None:
    run_ranks(compare_with_core, 4)


def use_subgroups() -> list[float]:
    rank = dist.get_rank()
    groups = [shm([0, 1]), shm([2, 3]), shm([1, 3]), shm([2])]
    found = []
    for _ in range(3):
        for ranks, group in zip(([0, 1], [2, 3], [1, 3], [2]), groups, strict=True):
            if rank in ranks:
                mine = torch.tensor([float(rank + 1)])
                dist.all_reduce(mine, group=group)
                found.append(float(mine) - sum(each + 1 for each in ranks))
    return found


def test_groups_of_some_ranks_do_not_disturb_each_other() -> None:
    assert [set(each) for each in run_ranks(use_subgroups, 4)] == [{0.0}] * 4


def issue_many() -> list[float]:
    group, rank = shm(), dist.get_rank()
    tensors = [torch.full((1 + 5000 * number,), float(rank + number)) for number in range(8)]
    works = [dist.all_reduce(each, group=group, async_op=True) for each in tensors]
    last = torch.zeros(1)
    dist.broadcast(tensors[0][:1] if rank == 0 else last, 0, group)  # waits for those before it
    futures = [work.get_future() for work in works]
    for work in works:
        assert work.wait()
        assert work.is_completed() and work.is_success() and work.exception() is None
    assert all(torch.equal(future.wait()[0], tensor) for future, tensor in zip(futures, tensors, strict=True))
    return [float(each[-1]) for each in tensors]


def test_asynchronous_calls_run_in_the_order_of_issue() -> None:
    expected = [float(1 + 2 * number) for number in range(8)]
    assert run_ranks(issue_many, 2) == [expected, expected]


def use_coalescing() -> tuple[float, float]:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    tensors = [torch.full((7,), float(rank + number)) for number in range(3)]
    with dist._coalescing_manager(group, async_ops=True) as manager:
        for tensor in tensors:
            dist.all_reduce(tensor, group=group)
    manager.wait()
    outs = [torch.empty(2 * world) for _ in range(3)]
    with dist._coalescing_manager(group):
        for number, out in enumerate(outs):
            dist.all_gather_into_tensor(out, torch.full((2,), float(rank + number)), group)
    assert all(torch.equal(out[::2], torch.arange(world) + float(number)) for number, out in enumerate(outs))
    return float(tensors[0][0]), float(tensors[2][6])


def test_several_calls_as_one() -> None:
    assert run_ranks(use_coalescing, 2) == [(1.0, 5.0)] * 2


def use_objects() -> tuple[list[Any], list[Any]]:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    every: list[Any] = [None] * world
    dist.all_gather_object(every, {"rank": rank, "text": "x" * 1000 * rank}, group)
    told = [{"from": 1}] if rank == 1 else [None]
    dist.broadcast_object_list(told, 1, group)
    dist.barrier(group)
    return [each["rank"] for each in every], told


def test_object_collectives_of_torch() -> None:
    assert run_ranks(use_objects, 2) == [([0, 1], [{"from": 1}])] * 2


def refuse() -> list[str]:
    group, messages = shm(), []

    def attempt(call: Callable[..., Any], *args: Any) -> None:
        with pytest.raises(ValueError, match=r"shm|all_gather|reduce_scatter|all_to_all|defined") as caught:
            call(*args)
        messages.append(str(caught.value))

    attempt(lambda: dist.all_reduce(torch.ones(2, dtype=torch.int16), group=group))
    attempt(lambda: dist.all_reduce(torch.ones(2), ReduceOp.BXOR, group))
    attempt(lambda: dist.all_reduce(torch.ones(2, dtype=torch.int32), ReduceOp.AVG, group))
    attempt(lambda: group._allgather_base(torch.ones(3), torch.ones(2)))
    attempt(lambda: group.alltoall_base(torch.ones(3), torch.ones(3), [], []))
    attempt(lambda: dist.all_reduce(torch.ones(2).to_sparse(), group=group))
    works = torch.ones(1)
    dist.all_reduce(works, group=group)  # nothing was sent, so the group still works
    assert works.item() == 2.0
    return messages


def test_what_is_not_served_is_refused_before_anything_is_sent() -> None:
    messages = run_ranks(refuse, 2)[0]
    assert "does not reduce tensors of torch.int16" in messages[0]
    assert "integer and boolean tensors only, got torch.float32" in messages[1]
    assert "floating-point tensors only, got torch.int32" in messages[2]
    assert "must have 2 x 2 elements" in messages[3]
    assert "3 rows of the input do not divide by 2 ranks" in messages[4]
    assert "dense tensors on the CPU" in messages[5]
