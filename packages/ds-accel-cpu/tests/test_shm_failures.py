"""A rank that dies, leaves, comes late or calls something else: the others get an error that names it, and soon."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core.testing import run_ranks
from ds_core.testing.ranks import RankDied

pytestmark = [
    pytest.mark.ranks,
    pytest.mark.skipif(sys.platform != "linux", reason="shared segments need Linux"),
]

SOON_S = 10.0
"""Far below the timeout of the groups here, far above what a loaded machine needs."""
GROUP_S = 100.0


def shm(timeout_s: float = GROUP_S) -> dist.ProcessGroup:
    from ds_core.comm.backends import choose_backend
    from ds_core.comm.discovery import discover

    choose_backend("shm", {}, discover({}))
    group: dist.ProcessGroup = dist.new_group(backend="shm", timeout=timedelta(seconds=timeout_s))
    return group


def error_of(call: Callable[[], Any]) -> str:
    """The message of the RuntimeError that `call` ends with, which must come soon."""
    started = time.monotonic()
    with pytest.raises(RuntimeError) as caught:
        call()
    assert time.monotonic() - started < SOON_S
    return str(caught.value)


def is_idle() -> bool:
    """Whether this process uses next to no processor time while its main thread sleeps."""
    before = time.process_time()
    time.sleep(0.5)
    return time.process_time() - before < 0.1


def traces() -> list[str]:
    """What of a segment this process still holds or the system still names."""
    names = [str(path) for path in Path("/dev/shm").iterdir() if "ds-comm" in path.name]
    for link in Path("/proc/self/fd").iterdir():
        try:
            names.append(str(link.readlink()))
        except OSError:
            continue
    names += Path("/proc/self/maps").read_text().splitlines()
    return [name for name in names if "ds-comm" in name]


def die_soon(delay_s: float) -> None:
    threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL)).start()


def lose_one_in_a_collective(how: str) -> dict[str, Any]:
    found = outlive_one(how)
    gc.collect()  # the tracebacks of the errors hold the group
    return {**found, "left": traces()}


def outlive_one(how: str) -> dict[str, Any]:
    group, rank = shm(), dist.get_rank()
    tensor = torch.ones(400_000)
    dist.all_reduce(tensor, group=group)
    assert traces()
    if rank == 1:
        die_soon(0.3)
        while how == "inside":
            dist.all_reduce(tensor, group=group)
        time.sleep(60)

    def work() -> None:
        while True:
            if how == "asynchronous":
                dist.all_reduce(tensor, group=group, async_op=True).wait()
            elif how == "barrier":
                dist.barrier(group)
            else:
                dist.all_reduce(tensor, group=group)

    first = error_of(work)
    again = error_of(lambda: dist.barrier(group))
    idle = is_idle()
    dist.destroy_process_group(group)
    return {"first": first, "again": again, "idle": idle}


@pytest.mark.parametrize("how", ["inside", "at rest", "asynchronous", "barrier"])
def test_a_killed_rank_is_named_and_nothing_is_left(how: str) -> None:
    results = run_ranks(lose_one_in_a_collective, 3, how, dies={1}, timeout_s=60, group_timeout_s=50)
    assert results[1] == RankDied(-signal.SIGKILL)
    for result in (results[0], results[2]):
        assert "rank 1 is gone (killed" in result["first"]
        assert result["again"] == result["first"]
        assert result["idle"]
        assert result["left"] == []


def lose_one_in_a_message(how: str) -> str:
    group, rank = shm(), dist.get_rank()
    if rank == 1:
        dist.send(torch.ones(4), 0, group, tag=1)  # arrives although its sender is gone
        die_soon(0.3)
        time.sleep(60)
    got = torch.zeros(4)
    if how == "send":
        return error_of(lambda: dist.send(torch.ones(1_000_000), 1, group))
    time.sleep(1.0)
    dist.recv(got, 1, group, tag=1)
    assert got.sum() == 4
    if how == "irecv":
        work = dist.irecv(got, 1, group)
        return error_of(work.wait)
    return error_of(lambda: dist.recv(got, None if how == "any" else 1, group))


@pytest.mark.parametrize("how", ["recv", "irecv", "send", "any"])
def test_a_rank_killed_while_others_wait_for_messages(how: str) -> None:
    assert "rank 1 is gone" in run_ranks(lose_one_in_a_message, 2, how, dies={1}, timeout_s=60, group_timeout_s=50)[0]


def lose_a_parent() -> str:
    """The dead rank has a forked child that lives on with everything it inherited."""
    group = shm()
    dist.barrier(group)
    if dist.get_rank() == 1:
        if os.fork() == 0:
            time.sleep(4)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
    return error_of(lambda: dist.all_reduce(torch.ones(1), group=group))


def test_a_forked_child_does_not_hide_the_death_of_its_parent() -> None:
    assert "rank 1 is gone" in run_ranks(lose_a_parent, 2, dies={1}, timeout_s=60, group_timeout_s=50)[0]


def call_different_things(how: str) -> str:
    group, rank = shm(), dist.get_rank()
    dist.barrier(group)
    ones = torch.ones(1000)

    def other() -> None:
        if how == "kind":
            dist.all_gather([torch.empty(1000) for _ in range(dist.get_world_size())], ones, group)
        elif how == "size":
            dist.all_reduce(torch.ones(999), group=group)
        elif how == "dtype":
            dist.all_reduce(ones.bfloat16(), group=group)
        elif how == "reduction":
            dist.all_reduce(ones, dist.ReduceOp.MAX, group)
        else:
            dist.barrier(group)
            dist.all_reduce(ones, group=group)

    return error_of(other if rank == 1 else lambda: dist.all_reduce(ones, group=group))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kind", "all_gather #2 of 4000 bytes (float32)"),
        ("size", "all_reduce #2 of 3996 bytes (float32, sum)"),
        ("dtype", "all_reduce #2 of 2000 bytes (bfloat16, sum)"),
        ("reduction", "all_reduce #2 of 4000 bytes (float32, maximum)"),
        ("number", "barrier #2"),
    ],
)
def test_ranks_that_call_different_things_hear_of_both(how: str, said: str) -> None:
    messages = run_ranks(call_different_things, 3, how, timeout_s=60)
    assert len(set(messages)) == 1
    assert f"rank 1 called {said} while" in messages[0] or f"while rank 1 called {said}:" in messages[0]
    assert "called all_reduce #2 of 4000 bytes (float32, sum)" in messages[0]


def split_differently() -> str:
    group, rank = shm(), dist.get_rank()
    sizes = [1, 2] if rank == 0 else [2, 3]
    return error_of(lambda: dist.all_to_all_single(torch.empty(4), torch.ones(sum(sizes)), [1, 3], sizes, group=group))


def test_split_sizes_that_do_not_match_are_named() -> None:
    (message,) = set(run_ranks(split_differently, 2))
    assert " bytes to rank " in message
    assert "the split sizes of the two do not match" in message


def come_late() -> str:
    group, rank = shm(timeout_s=2.0), dist.get_rank()
    dist.barrier()
    if rank in (1, 2):
        time.sleep(4.0)
    return error_of(lambda: dist.all_reduce(torch.ones(1), group=group))


def test_a_timeout_names_the_ranks_that_did_not_come() -> None:
    messages = run_ranks(come_late, 4, timeout_s=60)
    assert len(set(messages)) == 1
    assert "all_reduce #1 of 4 bytes (float32, sum) timed out on rank" in messages[0]
    assert "after 2 s: ranks 1, 2 have not arrived" in messages[0]


def leave_early() -> str:
    group = shm()
    dist.barrier(group)
    if dist.get_rank() == 1:
        dist.destroy_process_group(group)
        return ""
    return error_of(lambda: dist.all_reduce(torch.ones(1), group=group))


def test_a_rank_that_left_is_named() -> None:
    assert "rank 1 has left the group" in run_ranks(leave_early, 2, timeout_s=60)[0]


def work_in_a_child() -> str:
    group = shm()
    work = dist.all_reduce(torch.ones(1), group=group, async_op=True)
    work.wait()
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            text = error_of(lambda: dist.all_reduce(torch.ones(1), group=group))
        except BaseException as error:  # noqa: BLE001 - a child must not run the rest of the test
            text = repr(error)
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.wait()
    tensor = torch.ones(1)
    dist.all_reduce(tensor, group=group)
    assert tensor.item() == dist.get_world_size()
    return text


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_so_and_its_parent_goes_on() -> None:
    messages = run_ranks(work_in_a_child, 2, timeout_s=60)
    assert all("was forked: a forked child takes no part in collectives" in each for each in messages)


def interrupt() -> str:
    group = shm()
    if dist.get_rank() == 1:
        time.sleep(1.0)
        return error_of(lambda: dist.all_reduce(torch.ones(1), group=group))
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            dist.all_reduce(torch.ones(1), group=group)
    finally:
        signal.signal(signal.SIGINT, previous)
    return ""


def test_an_interrupt_ends_a_wait_and_the_others_hear_of_it() -> None:
    assert "rank 0 was interrupted in a collective" in run_ranks(interrupt, 2, timeout_s=60)[1]


def watch_over() -> list[str]:
    group, rank = shm(), dist.get_rank()
    from ds_core import comm

    comm.monitored_barrier(group)
    if rank == 1:
        time.sleep(2.0)
    return [error_of(lambda: comm.monitored_barrier(group, timedelta(seconds=0.5)))]


def test_a_monitored_barrier_names_who_did_not_come() -> None:
    messages = run_ranks(watch_over, 3, timeout_s=60)
    assert all("rank 1 has not arrived" in each[0] for each in messages)
