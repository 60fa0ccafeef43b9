"""The schedule as data, and what it makes ranks send."""

from __future__ import annotations

import pytest

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import Action, Op, Schedule, make_schedule, messages, v_shaped


def words(row: tuple[Action, ...]) -> str:
    return " ".join(map(str, row))


def test_gpipe_goes_forward_through_all_and_then_backward():
    schedule = make_schedule("gpipe", ranks=2, micro_batches=2)
    assert [words(row) for row in schedule.rows] == ["0F0 0F1 0B0 0B1", "1F0 1F1 1B0 1B1"]


def test_1f1b_warms_up_by_the_ranks_behind():
    schedule = make_schedule("1f1b", ranks=3, micro_batches=4)
    assert words(schedule.rows[0]) == "0F0 0F1 0F2 0B0 0F3 0B1 0B2 0B3"
    assert words(schedule.rows[2]) == "2F0 2B0 2F1 2B1 2F2 2B2 2F3 2B3"


def test_messages_follow_the_order_of_the_sender():
    sent = messages(make_schedule("1f1b", ranks=3, micro_batches=2))
    assert {pair: [(str(one.action), one.stage) for one in found] for pair, found in sent.items()} == {
        (0, 1): [("0F0", 1), ("0F1", 1)],
        (1, 2): [("1F0", 2), ("1F1", 2)],
        (2, 1): [("2B0", 1), ("2B1", 1)],
        (1, 0): [("1B0", 0), ("1B1", 0)],
    }


def test_stages_on_one_rank_send_nothing_to_each_other():
    row = tuple(Action(op, stage, 0) for op, stage in ((Op.F, 1), (Op.F, 2), (Op.I, 2), (Op.W, 2), (Op.B, 1)))
    first = (Action(Op.F, 0, 0), Action(Op.F, 3, 0), Action(Op.B, 3, 0), Action(Op.B, 0, 0))
    schedule = Schedule("by hand", 1, v_shaped(2), (first, row))
    sent = [str(one.action) for found in messages(schedule).values() for one in found]
    assert sorted(sent) == ["0F0", "1B0", "2F0", "3B0"]
    assert schedule.stages_of(1) == (1, 2)


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ScheduleError, match=r"unknown pipeline schedule '1f1d'.*Did you mean '1f1b'"):
        make_schedule("1f1d", ranks=2, micro_batches=2)


@pytest.mark.parametrize("numbers", [{"ranks": 0}, {"micro_batches": 0}, {"stages_per_rank": 0}])
def test_numbers_below_one_are_named(numbers):
    (name,) = numbers
    with pytest.raises(ScheduleError, match=f"{name} of schedule 'gpipe' must be at least 1, got 0"):
        make_schedule("gpipe", **{"ranks": 2, "micro_batches": 2, **numbers})


def test_more_stages_than_a_schedule_has_a_rule_for():
    with pytest.raises(ScheduleError, match="stages_per_rank of schedule '1f1b' must be 1, got 2"):
        make_schedule("1f1b", ranks=2, micro_batches=2, stages_per_rank=2)
