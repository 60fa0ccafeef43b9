"""run_ranks: real processes and threads with a gloo group, and errors that say which rank did what."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist

from ds_core.errors import ConfigError
from ds_core.testing import RankDied, RankError, run_ranks


@dataclass
class Pair:
    name: str
    value: torch.Tensor


def summed(scale: float) -> dict[str, Any]:
    tensor = torch.full((3,), scale * (dist.get_rank() + 1))
    dist.all_reduce(tensor)
    return {"sum": tensor, "rank": dist.get_rank(), "world": dist.get_world_size(), "threads": torch.get_num_threads()}


def pid() -> int:
    return os.getpid()


def echo(value: Any, *, other: Any = None) -> Any:
    return value, other


def variables() -> dict[str, str | None]:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "GLOO_SOCKET_IFNAME", "DS_TEST_ONLY")
    return {name: os.environ.get(name) for name in names}


def fail_on(rank: int) -> int:
    if dist.get_rank() == rank:
        raise ConfigError(f"wrong on rank {rank}")
    tensor = torch.zeros(1)
    dist.all_reduce(tensor)
    return dist.get_rank()


def all_fail() -> None:
    raise ValueError(f"mine is {dist.get_rank()}")


def die(rank: int, signal_number: int) -> str:
    if dist.get_rank() == rank:
        os.kill(os.getpid(), signal_number)
        time.sleep(10)
    try:
        dist.barrier()
    except RuntimeError as error:
        return type(error).__name__
    return "no error"


def hang_here(rank: int) -> None:
    if dist.get_rank() == rank:
        time.sleep(60)


def threaded(group: dist.ProcessGroup, value: int) -> tuple[int, int, float]:
    tensor = torch.tensor([float(group.rank() + value)])
    dist.all_reduce(tensor, group=group)
    return group.rank(), group.size(), float(tensor)


def threaded_failure(group: dist.ProcessGroup) -> None:
    if group.rank() == 1:
        raise ConfigError("thread one")


@pytest.mark.parametrize("world", [1, 2, 4])
def test_each_rank_is_in_one_initialised_group(world: int) -> None:
    results = run_ranks(summed, world, 0.5)
    total = 0.5 * world * (world + 1) / 2
    for rank, result in enumerate(results):
        assert result["rank"] == rank
        assert result["world"] == world
        assert result["threads"] == 1
        assert torch.equal(result["sum"], torch.full((3,), total))


def test_processes_are_reused_between_calls_and_calls_are_quick() -> None:
    first = run_ranks(pid, 2)
    started = time.perf_counter()
    second = run_ranks(pid, 2)
    elapsed_s = time.perf_counter() - started
    assert first == second
    assert os.getpid() not in first
    assert len(set(first)) == 2
    assert elapsed_s < 1.0


@pytest.mark.parametrize(
    "value",
    [
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        torch.tensor(3.5),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.nn.Parameter(torch.ones(2)),
    ],
    ids=["bf16-strided", "scalar", "empty", "bool", "parameter"],
)
def test_tensors_cross_by_value(value: torch.Tensor) -> None:
    (back, _), *_ = run_ranks(echo, 1, value)
    assert type(back) is type(value)
    assert back.dtype == value.dtype
    assert back.requires_grad == value.requires_grad
    assert torch.equal(back, value)


def test_classes_of_the_test_module_cross_both_ways() -> None:
    ((back, other),) = run_ranks(echo, 1, Pair("a", torch.ones(2)), other=[Pair("b", torch.zeros(1))])
    assert isinstance(back, Pair)
    assert back.name == "a"
    assert other[0].name == "b"


def test_environment_is_set_for_one_call_only() -> None:
    ranks = run_ranks(variables, 2, env={"DS_TEST_ONLY": "yes"})
    assert [rank["RANK"] for rank in ranks] == ["0", "1"]
    assert {rank["WORLD_SIZE"] for rank in ranks} == {"2"}
    assert {rank["GLOO_SOCKET_IFNAME"] for rank in ranks} == {"lo"}
    assert {rank["DS_TEST_ONLY"] for rank in ranks} == {"yes"}
    assert run_ranks(variables, 2)[0]["DS_TEST_ONLY"] is None


def test_one_failing_rank_comes_first_and_its_error_is_chained() -> None:
    with pytest.raises(RankError, match="first was rank 1: ConfigError: wrong on rank 1") as caught:
        run_ranks(fail_on, 2, 1)
    assert isinstance(caught.value.__cause__, ConfigError)
    assert "in fail_on" in str(caught.value)
    assert caught.value.failures[1].kind == "ConfigError"
    assert run_ranks(summed, 2, 1.0)[0]["world"] == 2


def test_every_failing_rank_is_named() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(all_fail, 2)
    assert {rank: failure.message for rank, failure in caught.value.failures.items()} == {
        0: "mine is 0",
        1: "mine is 1",
    }


def test_a_dead_rank_is_reported_with_its_signal() -> None:
    with pytest.raises(RankError, match=r"rank 1: died with exit code -9 \(SIGKILL\)"):
        run_ranks(die, 2, 1, int(signal.SIGKILL))


def test_a_rank_may_die_when_the_test_says_so() -> None:
    results = run_ranks(die, 2, 1, int(signal.SIGKILL), dies=[1])
    assert results[1] == RankDied(-int(signal.SIGKILL))
    assert results[0] != "no error"


def test_a_hang_is_stopped_and_shows_the_stack() -> None:
    started = time.monotonic()
    with pytest.raises(RankError, match=r"hang, did not end within timeout_s=1") as caught:
        run_ranks(hang_here, 2, 1, timeout_s=1)
    assert time.monotonic() - started < 8
    assert list(caught.value.failures) == [1]
    assert "in hang_here" in caught.value.failures[1].text
    assert caught.value.results == {0: None}


def test_functions_other_processes_cannot_find_are_refused() -> None:
    with pytest.raises(TypeError, match="module level"):
        run_ranks(lambda: None, 2)


def test_threads_get_their_group() -> None:
    assert run_ranks(threaded, 4, 1, mode="threads") == [(rank, 4, 10.0) for rank in range(4)]


def test_thread_failures_are_named_too() -> None:
    with pytest.raises(RankError, match="first was rank 1: ConfigError: thread one"):
        run_ranks(threaded_failure, 2, mode="threads")
