"""A failed collective says who, what and where on every rank; ranks that disagree are told so."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist

from ds_core import comm
from ds_core.errors import CommError
from ds_core.testing import RankError, run_ranks


def diverge() -> str:
    """The ranks call different collectives; the group's timeout ends it."""
    comm.all_reduce(torch.zeros(2))
    try:
        with comm.scope(f"layer{dist.get_rank()}"):
            if dist.get_rank() == 0:
                comm.broadcast(torch.zeros(2), src=1)
            else:
                comm.reduce_scatter_tensor(torch.zeros(1), torch.zeros(2))
    except CommError as error:
        return str(error)
    return "no error"


def test_ranks_in_different_collectives_are_shown_side_by_side() -> None:
    for rank, message in enumerate(run_ranks(diverge, 2, group_timeout_s=1.5)):
        op = ("broadcast", "reduce_scatter")[rank]
        assert message.startswith(f"{op} failed on rank {rank} (group 'world' of 2 ranks, call 2 on this group, ")
        assert f"scope layer{rank}" in message
        assert "rank 0: broadcast, call 2, scope layer0" in message
        assert "rank 1: reduce_scatter, call 2, scope layer1" in message
        assert "different collectives" in message


def one_leaves() -> str:
    if dist.get_rank() == 1:
        os._exit(3)
    with comm.scope("issued here"):
        handle = comm.all_reduce(torch.zeros(2), async_op=True)
    assert handle is not None
    with pytest.raises(CommError) as caught:
        handle.wait()
    return str(caught.value)


def test_a_rank_that_is_gone_has_no_report() -> None:
    started = time.monotonic()
    message = run_ranks(one_leaves, 2, dies=[1])[0]
    assert "all_reduce failed on rank 0" in message
    assert "scope issued here" in message
    assert "rank 1: no report" in message
    assert time.monotonic() - started < 10


def bad_arguments() -> str:
    with pytest.raises(CommError) as caught:
        comm.all_gather_into_tensor(torch.zeros(3), torch.zeros(2))
    return str(caught.value)


def test_bad_arguments_name_the_operation() -> None:
    assert "all_gather failed on rank 0" in run_ranks(bad_arguments, 2)[0]


def agreeing(values: list[object]) -> None:
    comm.agree(values[dist.get_rank()], "train_batch_size")


def test_agree_is_quiet_when_all_are_equal() -> None:
    run_ranks(agreeing, 2, [{"b": 1, "a": [2]}, {"a": [2], "b": 1}])


def test_agree_shows_who_has_what() -> None:
    with pytest.raises(RankError) as caught:
        run_ranks(agreeing, 2, [32, 64])
    for failure in caught.value.failures.values():
        assert isinstance(failure.exception, CommError)
        assert "do not agree on train_batch_size:\n  rank 0: 32\n  rank 1: 64" in str(failure.exception)
