"""Schedules that cannot run are refused, with the rank, the action and what is missing."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import SCHEDULES, Action, Costs, Op, Schedule, make_schedule, simulate, validate

GOOD = make_schedule("1f1b", ranks=2, micro_batches=2)


def action(text: str) -> Action:
    return Action(Op(text[1]), int(text[0]), int(text[2]))


def by_hand(*rows: str, places: tuple[int, ...] = (0, 1), micro_batches: int = 1) -> Schedule:
    return Schedule("by hand", micro_batches, places, tuple(tuple(map(action, row.split())) for row in rows))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (("0F0 0B0", "1F0"), r"rank 1, stage 1, micro-batch 0: there is no backward; add 1B0, or 1I0 and 1W0"),
        (("0F0 0B0", "1B0"), r"rank 1, stage 1, micro-batch 0: there is no forward; add 1F0"),
        (("0F0 0F0 0B0", "1F0 1B0"), r"rank 0, stage 0, micro-batch 0: 0F0 comes 2 times; keep one"),
        (("0F0 0B0", "1F0 1I0"), r"rank 1, stage 1, micro-batch 0: 1I0 has no 1W0 after it"),
        (("0F0 0B0", "1F0 1W0"), r"rank 1, stage 1, micro-batch 0: 1W0 has no 1I0 before it"),
        (("0F0 0B0 0W0", "1F0 1B0"), r"rank 0, .*: both 0B0 and 0W0 are there"),
        (("0F0 0B0", "1F0 0F0 1B0"), r"rank 1, 0F0: stage 0 is on rank 0; move the action to its row"),
        (("0F0 0B0 2F0", "1F0 1B0"), r"rank 0, 2F0: there is no stage 2; stages are 0 to 1"),
        (("0F0 0B0 0F1", "1F0 1B0"), r"rank 0, 0F1: there is no micro-batch 1; they are 0 to 0"),
    ],
)
def test_what_is_missing_or_too_much_is_named(rows, message):
    with pytest.raises(ScheduleError, match=message):
        validate(by_hand(*rows))


@pytest.mark.parametrize(("row", "first", "second"), [("0B0 0F0", "0B0", "0F0"), ("0F0 0W0 0I0", "0W0", "0I0")])
def test_an_action_before_what_its_own_rank_does_later(row, first, second):
    with pytest.raises(ScheduleError, match=f"rank 0 has {first} before {second}, which it needs"):
        validate(by_hand(row, places=(0,)))


def test_ranks_that_wait_for_each_other_are_told_the_circle():
    circle = by_hand("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1", micro_batches=2)
    with pytest.raises(ScheduleError) as caught:
        validate(circle)
    assert str(caught.value) == (
        "schedule 'by hand' cannot run: ranks wait for each other in a circle: rank 0 waits before 0B0 for 1B0 of "
        "rank 1; rank 1 waits before 1F1 for 0F1 of rank 0; move one of the awaited actions forward in its row"
    )


def test_simulation_of_a_circle_is_refused_too():
    with pytest.raises(ScheduleError, match="wait for each other in a circle"):
        simulate(by_hand("0F0 0B0 0F1 0B1", "1F0 1F1 1B0 1B1", micro_batches=2))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rank_of_stage": (0, 2)}, "places stage 1 on rank 2; it has rows for 2 ranks"),
        ({"rank_of_stage": (0, 0)}, "places no stage on rank 1"),
        ({"micro_batches": 0}, "must have at least 1 micro-batch, got 0"),
        ({"rank_of_stage": (), "rows": ()}, "has 0 stages on 0 ranks"),
    ],
)
def test_a_placement_that_makes_no_sense(changed, message):
    with pytest.raises(ScheduleError, match=message):
        validate(replace(GOOD, **changed))


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    ranks=st.integers(1, 4),
    micro_batches=st.integers(1, 6),
    data=st.data(),
)
def test_exchanging_two_actions_either_runs_or_is_refused_and_never_hangs(name, ranks, micro_batches, data):
    schedule = make_schedule(name, ranks=ranks, micro_batches=micro_batches)
    rank = data.draw(st.integers(0, ranks - 1))
    row = list(schedule.rows[rank])
    one, two = (data.draw(st.integers(0, len(row) - 1)) for _ in range(2))
    row[one], row[two] = row[two], row[one]
    changed = replace(schedule, rows=(*schedule.rows[:rank], tuple(row), *schedule.rows[rank + 1 :]))
    try:
        validate(changed)
    except ScheduleError as refusal:
        assert "cannot run" in str(refusal)
    else:
        run = simulate(changed, Costs(2, 1, 1, transfer=1))
        assert run.makespan >= max(map(run.busy, range(ranks)))
