"""Collectives give torch's numbers, are an identity on one rank, and are counted to the byte."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.errors import CommError
from ds_core.testing import run_ranks

WORLDS = pytest.mark.parametrize("world", [2, 4])


def data(rank: int, numel: int = 8) -> torch.Tensor:
    return torch.arange(numel, dtype=torch.float32) * (rank + 1) + rank


def all_ops() -> dict[str, Any]:
    """Every collective on the same inputs, sync and async; each compared with what the ranks must give."""
    rank, world = dist.get_rank(), dist.get_world_size()
    inputs = [data(r) for r in range(world)]
    total = torch.stack(inputs).sum(0)
    mine = inputs[rank]
    per = 8 // world
    checks: dict[str, bool] = {}
    for is_async in (False, True):

        def done(handle: Any, is_async: bool = is_async) -> None:
            if is_async:
                assert handle.wait()
                assert handle.is_completed()
            else:
                assert handle is None

        tag = " async" if is_async else ""
        tensor = mine.clone()
        done(comm.all_reduce(tensor, async_op=is_async))
        checks["all_reduce" + tag] = torch.equal(tensor, total)
        tensor = mine.clone()
        done(comm.all_reduce(tensor, op=comm.ReduceOp.MAX, async_op=is_async))
        checks["max" + tag] = torch.equal(tensor, torch.stack(inputs).amax(0))
        pair = [mine.clone(), mine.clone() * 2]
        done(comm.all_reduce_coalesced(pair, async_op=is_async))
        checks["coalesced" + tag] = torch.equal(pair[0], total) and torch.equal(pair[1], total * 2)
        tensor = mine.clone()
        done(comm.reduce(tensor, dst=1, async_op=is_async))
        checks["reduce" + tag] = rank != 1 or torch.equal(tensor, total)
        tensor = mine.clone()
        done(comm.broadcast(tensor, src=1, async_op=is_async))
        checks["broadcast" + tag] = torch.equal(tensor, inputs[1])
        out = torch.empty(8 * world)
        done(comm.all_gather_into_tensor(out, mine, async_op=is_async))
        checks["all_gather_into_tensor" + tag] = torch.equal(out, torch.cat(inputs))
        outs = [torch.empty(8) for _ in range(world)]
        done(comm.all_gather(outs, mine, async_op=is_async))
        checks["all_gather" + tag] = all(torch.equal(a, b) for a, b in zip(outs, inputs, strict=True))
        flats = [torch.empty(8 * world), torch.empty(8 * world)]
        done(comm.all_gather_coalesced(flats, [mine, mine + 1], async_op=is_async))
        checks["all_gather_coalesced" + tag] = torch.equal(flats[1], torch.cat(inputs) + 1)
        piece = torch.empty(per)
        done(comm.reduce_scatter_tensor(piece, mine, async_op=is_async))
        checks["reduce_scatter_tensor" + tag] = torch.equal(piece, total[rank * per : (rank + 1) * per])
        piece = torch.empty(per)
        done(comm.reduce_scatter(piece, list(mine.split(per)), async_op=is_async))
        checks["reduce_scatter" + tag] = torch.equal(piece, total[rank * per : (rank + 1) * per])
        out = torch.empty(8)
        done(comm.all_to_all_single(out, mine, async_op=is_async))
        expected = torch.cat([source[rank * per : (rank + 1) * per] for source in inputs])
        checks["all_to_all_single" + tag] = torch.equal(out, expected)
        pieces = [torch.empty(per) for _ in range(world)]
        done(comm.all_to_all(pieces, list(mine.split(per)), async_op=is_async))
        checks["all_to_all" + tag] = torch.equal(torch.cat(pieces), expected)
        gathered = [torch.empty(8) for _ in range(world)] if rank == 0 else None
        done(comm.gather(mine, gathered, dst=0, async_op=is_async))
        checks["gather" + tag] = rank != 0 or torch.equal(torch.stack(gathered or []), torch.stack(inputs))
        tensor = torch.empty(8)
        done(comm.scatter(tensor, inputs if rank == 1 else None, src=1, async_op=is_async))
        checks["scatter" + tag] = torch.equal(tensor, mine)
        done(comm.barrier(async_op=is_async))
    comm.monitored_barrier()
    return checks


@WORLDS
def test_every_collective_gives_the_right_numbers(world: int) -> None:
    for rank, checks in enumerate(run_ranks(all_ops, world)):
        assert len(checks) == 28
        wrong = [name for name, ok in checks.items() if not ok]
        assert not wrong, f"rank {rank}: {wrong}"


def counted() -> list[tuple[Any, ...]]:
    rank, world = dist.get_rank(), dist.get_world_size()
    comm.reset()
    with comm.scope("outer"):
        comm.all_reduce(torch.zeros(10))
        with comm.scope("inner"):
            comm.all_reduce(torch.zeros(3, dtype=torch.bfloat16))
            comm.all_reduce(torch.zeros(3, dtype=torch.bfloat16), async_op=True).wait()
    comm.reduce_scatter_tensor(torch.zeros(4), torch.zeros(4 * world))
    comm.all_gather_into_tensor(torch.zeros(2 * world), torch.zeros(2))
    comm.all_gather([torch.zeros(2) for _ in range(world)], torch.zeros(2))
    comm.broadcast(torch.zeros(5, dtype=torch.int64), 0)
    comm.reduce(torch.zeros(8), 0)
    comm.all_to_all_single(torch.zeros(world, 3), torch.zeros(world, 3))
    # uneven: rank r sends r + 1 rows of 4 bytes to everyone, so it receives 1, 2, ... rows
    splits = [rank + 1] * world
    comm.all_to_all_single(
        torch.zeros(sum(range(1, world + 1))), torch.zeros(sum(splits)), list(range(1, world + 1)), splits
    )
    comm.gather(torch.zeros(4), [torch.zeros(4) for _ in range(world)] if rank == 0 else None)
    comm.scatter(torch.zeros(4), [torch.zeros(4) for _ in range(world)] if rank == 0 else None)
    comm.barrier()
    if rank == 0:
        comm.send(torch.zeros(6), 1)
    elif rank == 1:
        comm.recv(torch.zeros(6), 0)
    return [(row.op, row.group, row.scope, row.calls, row.bytes_payload, row.bytes_sent) for row in comm.report().rows]


@WORLDS
def test_bytes_are_exact(world: int) -> None:
    for rank, rows in enumerate(run_ranks(counted, world)):
        others = world - 1
        uneven = 4 * (rank + 1)
        expected = [
            ("all_gather", "world", "", 2, 2 * 8 * world, 2 * 8 * others),
            ("all_reduce", "world", "outer", 1, 40, 80 * others // world),
            ("all_reduce", "world", "outer/inner", 2, 12, 2 * (12 * others // world)),
            ("all_to_all", "world", "", 2, 12 * world + uneven * world, 12 * others + uneven * others),
            ("barrier", "world", "", 1, 0, 0),
            ("broadcast", "world", "", 1, 40, 40 * others // world),
            ("gather", "world", "", 1, 16 * world, 16 * others),
            ("reduce", "world", "", 1, 32, 32 * others // world),
            ("reduce_scatter", "world", "", 1, 16 * world, 16 * others),
            ("scatter", "world", "", 1, 16 * world, 16 * others),
        ]
        if rank == 0:
            expected.append(("send", "world", "", 1, 24, 24))
        if rank == 1:
            expected.append(("recv", "world", "", 1, 24, 0))
        assert rows == sorted(expected)


def ring() -> tuple[list[bool], torch.Tensor]:
    """Everyone sends to everyone before anyone waits: only truly asynchronous calls get through this."""
    rank, world = dist.get_rank(), dist.get_world_size()
    after, before = (rank + 1) % world, (rank - 1) % world
    incoming = torch.empty(50_000)
    sending = comm.isend(torch.full((50_000,), float(rank)), after)
    receiving = comm.irecv(incoming, before)
    return [sending.wait(), receiving.wait()], incoming[:3]


@WORLDS
def test_isend_and_irecv_do_not_block(world: int) -> None:
    for rank, (done, got) in enumerate(run_ranks(ring, world)):
        assert done == [True, True]
        assert torch.equal(got, torch.full((3,), float((rank - 1) % world)))


def late_receiver() -> bool:
    if dist.get_rank() == 0:
        tensor = torch.empty(4)
        handle = comm.irecv(tensor, 1)
        before = handle.is_completed()
        comm.barrier()
        handle.wait()
        return before
    comm.barrier()
    comm.send(torch.ones(4), 0)
    return False


def test_irecv_returns_before_the_message_exists() -> None:
    assert run_ranks(late_receiver, 2) == [False, False]


def subgroup() -> dict[str, Any]:
    rank = dist.get_rank()
    even = comm.new_group([0, 2], name="even")
    comm.reset()
    tensor = torch.tensor([float(rank)])
    comm.all_reduce(tensor, group=even)
    return {
        "value": float(tensor),
        "rank": comm.get_rank(even),
        "size": comm.get_world_size(even),
        "rows": [(row.group, row.bytes_sent) for row in comm.report().rows],
        "members": comm.get_all_ranks_from_group(even) if rank in (0, 2) else None,
        "global": comm.get_global_rank(even, 1) if rank in (0, 2) else None,
    }


def test_named_groups_and_ranks_outside_them() -> None:
    results = run_ranks(subgroup, 4)
    for rank in (0, 2):
        assert results[rank] == {
            "value": 2.0,
            "rank": rank // 2,
            "size": 2,
            "rows": [("even", 4)],
            "members": [0, 2],
            "global": 2,
        }
    for rank in (1, 3):
        assert results[rank]["value"] == rank
        assert results[rank]["rank"] == -1
        assert results[rank]["rows"] == []


def bad_group() -> str:
    with pytest.raises(CommError) as caught:
        comm.new_group([0, 9])
    return str(caught.value)


def test_a_group_of_ranks_that_do_not_exist_is_refused() -> None:
    assert "ranks must be in 0..1" in run_ranks(bad_group, 2)[0]


def objects() -> tuple[list[Any], list[Any], list[Any]]:
    rank = dist.get_rank()
    gathered: list[Any] = [None, None]
    comm.all_gather_object(gathered, {"rank": rank})
    sent = ["from 1", rank] if rank == 1 else [None, None]
    comm.broadcast_object_list(sent, src=1)
    return gathered, sent, comm.gather_json({"n": "x" * rank, "ü": None})


def test_small_objects() -> None:
    for gathered, sent, told in run_ranks(objects, 2):
        assert gathered == [{"rank": 0}, {"rank": 1}]
        assert sent == ["from 1", 1]
        assert told == [{"n": "", "ü": None}, {"n": "x", "ü": None}]


def one_rank_ops() -> None:
    source = torch.arange(4.0)
    tensor = source.clone()
    for handle in (
        comm.all_reduce(tensor, async_op=True),
        comm.broadcast(tensor, 0, async_op=True),
        comm.reduce(tensor, 0, async_op=True),
        comm.barrier(async_op=True),
    ):
        assert handle is not None
        assert handle.wait()
        assert handle.is_completed()
    assert torch.equal(tensor, source)
    for run in (comm.all_gather_into_tensor, comm.reduce_scatter_tensor, comm.all_to_all_single, comm.allgather_fn):
        out = torch.empty(4)
        assert run(out, source) is None
        assert torch.equal(out, source)
    outs = [torch.empty(4)]
    comm.all_gather(outs, source)
    assert torch.equal(outs[0], source)
    comm.reduce_scatter(tensor, [source * 2])
    assert torch.equal(tensor, source * 2)
    comm.scatter(tensor, [source])
    assert torch.equal(tensor, source)
    comm.gather(source, outs)
    comm.all_to_all(outs, [source * 3])
    assert torch.equal(outs[0], source * 3)
    assert comm.gather_json([1]) == [[1]]
    comm.agree({"a": 1}, "nothing")
    comm.monitored_barrier()
    with pytest.raises(CommError, match="only one rank"):
        comm.send(tensor, 1)


def test_one_rank_without_a_group_is_an_identity() -> None:
    assert not dist.is_initialized()
    comm.reset()
    one_rank_ops()
    report = comm.report()
    assert report.bytes_sent == 0
    assert report.select(op="all_gather").calls == 3
    assert comm.get_rank() == 0
    assert comm.get_world_size() == 1
    assert comm.new_group([0]) is None
    assert comm.get_all_ranks_from_group() == [0]
    assert not dist.is_initialized()
    comm.reset()
    assert comm.report().rows == ()


def test_several_ranks_without_a_group_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(CommError, match=r"WORLD_SIZE=2.*init_distributed"):
        comm.all_reduce(torch.zeros(1))


def calls_of(function: Callable[[], object]) -> int:
    """Python functions that `function` calls, once it has run before."""
    function()
    count = 0

    def note(frame: object, event: str, arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def calls_added() -> int:
    """What our wrapper adds to torch's call, on a group of one rank."""
    tensor = torch.zeros(1)
    with comm.scope("x"):
        ours = calls_of(lambda: comm.all_reduce(tensor))
    return ours - calls_of(lambda: dist.all_reduce(tensor))


def test_counting_is_cheap() -> None:
    (added,) = run_ranks(calls_added, 1)
    assert 0 < added <= 12


def test_what_is_not_offered_says_why() -> None:
    with pytest.raises(CommError, match="ds_comm_backends"):
        comm.set_backend()
    with pytest.raises(CommError, match=r"torch\.distributed backends only"):
        comm.init_deepspeed_backend("ccl")
    with pytest.raises(CommError, match="symmetric memory"):
        comm.enable_symm_mem_for_group("0")
    assert comm.has_all_gather_into_tensor()
    assert not comm.has_coalescing_manager()
