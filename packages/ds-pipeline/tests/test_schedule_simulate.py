"""Times and memory of a simulated schedule, for costs that differ."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import SCHEDULES, Costs, inputs_of, make_schedule, peak_bytes, peaks, simulate

POSITIVE = st.integers(1, 9)


@given(
    name=st.sampled_from(sorted(SCHEDULES)),
    ranks=st.integers(1, 4),
    micro_batches=st.integers(1, 9),
    data=st.data(),
)
def test_no_action_starts_before_its_inputs_are_there_nor_later_than_it_could(name, ranks, micro_batches, data):
    schedule = make_schedule(name, ranks=ranks, micro_batches=micro_batches)
    each = st.lists(POSITIVE, min_size=schedule.stages, max_size=schedule.stages)
    costs = Costs(*(data.draw(each) for _ in range(4)))
    run = simulate(schedule, costs)
    end = {timed.action: timed.end for row in run.rows for timed in row}
    inputs = inputs_of(schedule)
    for rank, row in enumerate(run.rows):
        assert [timed.action for timed in row] == list(schedule.rows[rank])
        free = 0.0
        for timed in row:
            there = [
                end[needed] + costs.transfer[timed.action.stage] * (schedule.rank_of_stage[needed.stage] != rank)
                for needed in inputs[timed.action]
            ]
            assert timed.start == max(free, *there, 0.0)
            assert timed.end - timed.start == costs.of(timed.action)
            free = timed.end
        assert run.busy(rank) + run.idle(rank) == pytest.approx(run.makespan)


def test_one_stage_that_takes_longer_holds_up_all_ranks():
    run = simulate(make_schedule("1f1b", ranks=2, micro_batches=3), Costs(forward=[1.0, 5.0]))
    assert run.busy(1) == 3 * (5 + 2)
    assert run.makespan == 1 + run.busy(1) + 2  # the way to the slow rank, its work, and the last backward
    assert run.idle(0) == run.makespan - 9


def test_transfers_delay_only_what_crosses_ranks():
    schedule = make_schedule("gpipe", ranks=2, micro_batches=1)
    assert simulate(schedule, Costs(transfer=10)).makespan == simulate(schedule).makespan + 2 * 10
    turn = make_schedule("zbv", ranks=1, micro_batches=1)
    assert simulate(turn, Costs(transfer=10)).makespan == simulate(turn).makespan


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        (Costs(forward=[1.0, 2.0]), "costs.forward must be one number or one for each of 4 stages, got 2"),
        (Costs(transfer=-1), "costs.transfer must be at least 0 and finite, got -1"),
        (Costs(backward_weight=float("nan")), "costs.backward_weight must be at least 0 and finite, got nan"),
    ],
)
def test_costs_that_make_no_sense(costs, message):
    with pytest.raises(ScheduleError, match=message):
        simulate(make_schedule("1f1b", ranks=4, micro_batches=2), costs)


def test_bytes_follow_each_stage_and_what_weights_keep():
    schedule = make_schedule("zb-h1", ranks=2, micro_batches=4)
    # Rank 0: two micro-batches between F and I. Rank 1: one there and one between I and W.
    assert peak_bytes(schedule, [10, 10], [4, 4]) == (20, 14)
    assert peak_bytes(schedule, [10, 10]) == (20, 20)
    assert peak_bytes(make_schedule("gpipe", ranks=2, micro_batches=4), [10, 7]) == (40, 28)
    with pytest.raises(ScheduleError, match="activation_bytes must have one number for each of 2 stages, got 1"):
        peak_bytes(schedule, [10])


@given(name=st.sampled_from(sorted(SCHEDULES)), ranks=st.integers(1, 5), micro_batches=st.integers(1, 9))
def test_bytes_of_one_each_are_the_count(name, ranks, micro_batches):
    schedule = make_schedule(name, ranks=ranks, micro_batches=micro_batches)
    assert peak_bytes(schedule, [1] * schedule.stages) == tuple(one.both for one in peaks(schedule))
