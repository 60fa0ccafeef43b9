"""Who reads what: every sample exactly once, whatever the sizes and wherever a run restarts."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ds_core.data.order import GlobalBatches, epoch_order, epoch_seed
from ds_core.data.stream import RankStream

SIZES = {"length": st.integers(1, 60), "batch": st.integers(1, 5), "ranks": st.integers(1, 5)}


def read(length: int, batch: int, ranks: int, drop_last: bool, consumed: int = 0) -> list[list[list[int]]]:
    """Positions by step and rank."""
    plan = GlobalBatches(length, batch * ranks, drop_last)
    return [[step.positions(rank, ranks) for rank in range(ranks)] for step in plan.steps(consumed)]


@settings(deadline=None)
@given(**SIZES)
def test_every_position_is_read_once_and_only_the_tail_is_padded(length: int, batch: int, ranks: int) -> None:
    steps = read(length, batch, ranks, drop_last=False)
    everything = [position for step in steps for rank in step for position in rank]
    assert set(everything) == set(range(length))
    assert len(everything) - length == -length % (batch * ranks) % ranks
    for step in steps:
        assert len({len(rank) for rank in step}) == 1
        assert 1 <= len(step[0]) <= batch
    for step in steps[:-1]:
        assert sorted(position for rank in step for position in rank) == sorted(
            {position for rank in step for position in rank}
        )


@settings(deadline=None)
@given(**SIZES)
def test_dropping_the_tail_leaves_full_batches_without_repeats(length: int, batch: int, ranks: int) -> None:
    steps = read(length, batch, ranks, drop_last=True)
    everything = sorted(position for step in steps for rank in step for position in rank)
    assert everything == list(range(length // (batch * ranks) * batch * ranks))
    assert all(len(rank) == batch for step in steps for rank in step)


@settings(deadline=None)
@given(**SIZES, new_ranks=st.integers(1, 5), stop=st.integers(0, 20))
def test_a_restart_with_other_ranks_reads_the_rest_once(
    length: int, batch: int, ranks: int, new_ranks: int, stop: int
) -> None:
    before = list(GlobalBatches(length, batch * ranks, drop_last=False).steps())[:stop]
    consumed = sum(step.count for step in before)
    seen = {position for step in before for rank in range(ranks) for position in step.positions(rank, ranks)}
    after = read(length, batch, new_ranks, drop_last=False, consumed=consumed)
    rest = {position for step in after for rank in step for position in rank}
    assert seen == set(range(consumed))
    assert rest == set(range(consumed, length))


@settings(deadline=None)
@given(**SIZES, drop_last=st.booleans(), skip=st.integers(0, 30))
def test_a_stream_is_shared_out_as_a_map_is(length: int, batch: int, ranks: int, drop_last: bool, skip: int) -> None:
    planned = read(length, batch, ranks, drop_last, consumed=skip)
    for rank in range(ranks):
        stream = RankStream(range(length), batch, rank=rank, ranks=ranks, skip=skip, drop_last=drop_last)
        assert list(stream) == [step[rank] for step in planned]


def test_ranks_take_turns_within_a_global_batch() -> None:
    assert read(10, 2, 2, drop_last=False) == [[[0, 2], [1, 3]], [[4, 6], [5, 7]], [[8], [9]]]
    assert read(7, 2, 3, drop_last=False)[-1] == [[6], [6], [6]]


def test_the_order_depends_on_seed_and_epoch_only() -> None:
    base = epoch_order(50, 3, 4, shuffle=True)
    assert base.equal(epoch_order(50, 3, 4, shuffle=True))
    assert sorted(base.tolist()) == list(range(50))
    others = [
        epoch_order(50, 3, 5, shuffle=True),
        epoch_order(50, 4, 3, shuffle=True),
        epoch_order(50, 4, 4, shuffle=True),
    ]
    assert not any(base.equal(other) for other in others)
    assert epoch_order(5, 3, 4, shuffle=False).tolist() == [0, 1, 2, 3, 4]


def test_the_order_does_not_change_between_releases() -> None:
    assert epoch_order(10, 0, 0, shuffle=True).tolist() == [6, 3, 2, 7, 4, 9, 1, 0, 5, 8]
    assert len({epoch_seed(seed, epoch) for seed in range(30) for epoch in range(30)}) == 900
