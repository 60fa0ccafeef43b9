"""Messages between two ranks: tags, any order of posting, any source, many at once."""

from __future__ import annotations

import sys
import threading
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from ds_core.testing import run_ranks

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
]

LARGE = 700_001
"""Elements of a message that is several times as long as a ring."""


def shm() -> dist.ProcessGroup:
    from ds_core.comm.backends import choose_backend
    from ds_core.comm.discovery import discover

    choose_backend("shm", {}, discover({}))
    group: dist.ProcessGroup = dist.new_group(backend="shm", timeout=timedelta(seconds=20))
    return group


def cross() -> None:
    """Both send first; the second message sent is waited for first."""
    group, rank = shm(), dist.get_rank()
    for numel in (0, 1, 77, LARGE):
        sent = [torch.full((numel + tag,), float(10 * rank + tag)) for tag in range(3)]
        got = [torch.empty(numel + tag) for tag in range(3)]
        sends = [dist.isend(sent[tag], 1 - rank, group, tag) for tag in range(3)]
        receives = [dist.irecv(got[tag], 1 - rank, group, tag) for tag in (2, 0, 1)]
        for work in (*receives, *sends):
            work.wait()
        assert all((got[tag] == 10 * (1 - rank) + tag).all() for tag in range(3))


def test_sends_first_on_both_sides_and_tags_in_another_order() -> None:
    run_ranks(cross, 2)


def block_by_tag() -> float:
    """A blocking receive of the later message; the earlier one is larger than any buffer."""
    group = shm()
    if dist.get_rank() == 0:
        first, second = torch.full((LARGE,), 1.0), torch.full((5,), 2.0)
        works = [dist.isend(first, 1, group, tag=1), dist.isend(second, 1, group, tag=2)]
        for work in works:
            work.wait()
        return 0.0
    early, late = torch.empty(LARGE), torch.empty(5)
    dist.recv(late, 0, group, tag=2)
    dist.recv(early, 0, group, tag=1)
    return float(early[-1] + late[-1])


def test_a_message_that_nobody_wants_yet_blocks_no_other() -> None:
    assert run_ranks(block_by_tag, 2) == [0.0, 3.0]


def send_then_collective() -> float:
    """Rank 0 never waits for its send before the collective that rank 1 enters only after it has the message."""
    group, rank = shm(), dist.get_rank()
    total = torch.ones(1)
    if rank == 0:
        message = torch.full((LARGE,), 7.0)
        work = dist.isend(message, 1, group)
        dist.all_reduce(total, group=group)
        work.wait()
        return float(total)
    got = torch.empty(LARGE)
    dist.recv(got, 0, group)
    dist.all_reduce(total, group=group)
    return float(total + got[-1])


def test_a_send_goes_on_while_its_rank_is_in_a_collective() -> None:
    assert run_ranks(send_then_collective, 2) == [2.0, 9.0]


def gather_from_anyone() -> list[tuple[int, float]]:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    if rank:
        dist.send(torch.full((3,), float(rank)), 0, group, tag=4)
        return []
    found = []
    for _ in range(world - 1):
        got = torch.empty(3)
        source = dist.recv(got, None, group, tag=4)
        found.append((source, float(got[0])))
    return sorted(found)


def test_receiving_from_any_source_says_from_whom() -> None:
    assert run_ranks(gather_from_anyone, 4)[0] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def ring() -> None:
    group, rank, world = shm(), dist.get_rank(), dist.get_world_size()
    for numel in (3, LARGE):
        out, back = torch.full((numel,), float(rank)), torch.empty(numel)
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, out, (rank + 1) % world, group),
                dist.P2POp(dist.irecv, back, (rank - 1) % world, group),
            ]
        )
        for work in works:
            work.wait()
        assert (back == (rank - 1) % world).all()


def test_a_ring_of_batched_messages() -> None:
    run_ranks(ring, 4)


def reuse() -> float:
    """A blocking send lets go of its tensor: changing it afterwards changes nothing."""
    group, total = shm(), 0.0
    tensor = torch.zeros(1000)
    for number in range(50):
        if dist.get_rank() == 0:
            tensor.fill_(number)
            dist.send(tensor, 1, group)
            tensor.fill_(-1)
        else:
            dist.recv(tensor, 0, group)
            total += float(tensor.min())
    return total


def test_a_sent_tensor_may_be_changed() -> None:
    assert run_ranks(reuse, 2)[1] == sum(range(50))


def many_threads() -> float:
    """Several threads of a rank wait for messages of the same group at once."""
    group, rank = shm(), dist.get_rank()
    got = [torch.empty(1000) for _ in range(4)]

    def work(tag: int) -> None:
        if rank == 0:
            group.send([torch.full((1000,), float(tag))], 1, tag).wait()
        else:
            group.recv([got[tag]], 0, tag).wait()

    threads = [threading.Thread(target=work, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(float(each[0]) for each in got) if rank else 0.0


def test_threads_may_wait_side_by_side() -> None:
    assert run_ranks(many_threads, 2)[1] == 6.0


def send_the_wrong_size() -> str:
    group, rank = shm(), dist.get_rank()
    with pytest.raises(RuntimeError, match="both must have the same size") as caught:
        if rank == 0:
            dist.send(torch.ones(3), 1, group, tag=9)
            dist.barrier(group)
        else:
            dist.recv(torch.ones(5), 0, group, tag=9)
    return str(caught.value)


def test_a_message_of_another_size_is_an_error_on_both_sides() -> None:
    messages = run_ranks(send_the_wrong_size, 2)
    assert all("rank 0 sent 12 bytes to rank 1 with tag 9, where a tensor of 20 bytes" in each for each in messages)


def limited_wait() -> tuple[str, float]:
    """A wait with a limit of its own gives up, and the message can still come."""
    group, got = shm(), torch.zeros(2)
    dist.barrier(group)
    if dist.get_rank() == 0:
        dist.barrier(group)
        dist.send(torch.ones(2), 1, group)
        return "", 0.0
    work = dist.irecv(got, 0, group)
    with pytest.raises(RuntimeError, match="did not end within") as caught:
        work.wait(timedelta(seconds=0.1))
    dist.barrier(group)
    work.wait()
    return str(caught.value), float(got.sum())


def test_a_wait_with_a_limit_breaks_nothing() -> None:
    assert run_ranks(limited_wait, 2)[1] == ("the operation did not end within 0.1 s; it is still under way", 2.0)
