"""Bubbles and memory of every schedule against the papers' formulas, at T_F = T_I = T_W."""

from __future__ import annotations

import pytest

from ds_pipeline.errors import ScheduleError
from ds_pipeline.schedules import (
    SCHEDULES,
    Costs,
    Op,
    forward_only,
    looped,
    make_schedule,
    peaks,
    simulate,
    v_shaped,
    validate,
)
from ds_pipeline.schedules.listing import weights_when_idle

RANKS = range(1, 9)
TRAINING = [name for name, kind in SCHEDULES.items() if kind.is_training]


def idle(schedule, costs: Costs) -> float:
    """How long a rank waits; all ranks have equal work here."""
    run = simulate(schedule, costs)
    waits = {round(run.idle(rank), 9) for rank in range(schedule.ranks)}
    assert len(waits) == 1
    return waits.pop()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("ranks", RANKS)
def test_every_schedule_can_run_with_any_number_of_micro_batches(name, ranks):
    for micro_batches in range(1, 3 * ranks + 2):
        validate(make_schedule(name, ranks=ranks, micro_batches=micro_batches))


@pytest.mark.parametrize("name", TRAINING)
@pytest.mark.parametrize("micro_batches", [1, 3, 9])
def test_every_stage_sums_its_weight_gradients_in_the_order_of_the_micro_batches(name, micro_batches):
    schedule = make_schedule(name, ranks=4, micro_batches=micro_batches)
    for rank, row in enumerate(schedule.rows):
        for stage in schedule.stages_of(rank):
            order = [action.micro_batch for action in row if action.stage == stage and action.op in (Op.B, Op.W)]
            assert order == list(range(micro_batches))


@pytest.mark.parametrize("name", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("ranks", "micro_batches"), [(1, 3), (2, 2), (4, 8), (7, 9), (8, 3)])
def test_gpipe_and_1f1b_waste_p_minus_1_of_m_plus_p_minus_1(name, ranks, micro_batches):
    run = simulate(make_schedule(name, ranks=ranks, micro_batches=micro_batches), Costs(2, 3, 1))
    assert run.bubble_fraction == pytest.approx((ranks - 1) / (micro_batches + ranks - 1))


@pytest.mark.parametrize("stages_per_rank", [1, 2, 3, 4])
@pytest.mark.parametrize(("ranks", "groups"), [(2, 1), (4, 2), (8, 3)])
def test_interleaving_divides_the_bubble_by_the_stages_per_rank(stages_per_rank, ranks, groups):
    schedule = make_schedule("interleaved", ranks=ranks, micro_batches=ranks * groups, stages_per_rank=stages_per_rank)
    work = stages_per_rank * ranks * groups
    assert simulate(schedule).bubble_fraction == pytest.approx((ranks - 1) / (work + ranks - 1))


@pytest.mark.parametrize("micro_batches", [1, 5, 6, 7])
def test_a_group_that_is_not_full_takes_no_longer_than_a_full_one(micro_batches):
    partial, full = (make_schedule("interleaved", ranks=4, micro_batches=count) for count in (micro_batches, 8))
    assert simulate(partial).makespan <= simulate(full).makespan
    assert all(one.both <= other.both for one, other in zip(peaks(partial), peaks(full), strict=True))


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("costs", [(1, 1, 1), (2, 2, 1), (5, 6, 4)])
def test_zb_h1_waits_for_what_the_paper_says(ranks, costs):
    forward, inputs, weights = costs
    for micro_batches in (ranks, ranks + 1, 4 * ranks):
        schedule = make_schedule("zb-h1", ranks=ranks, micro_batches=micro_batches)
        assert idle(schedule, Costs(*costs)) == pytest.approx((ranks - 1) * (forward + inputs - weights))


@pytest.mark.parametrize("ranks", RANKS)
def test_zb_h1_has_a_third_of_the_bubble_of_1f1b(ranks):
    ours, theirs = (make_schedule(name, ranks=ranks, micro_batches=2 * ranks) for name in ("zb-h1", "1f1b"))
    assert 3 * idle(ours, Costs()) == idle(theirs, Costs())


@pytest.mark.parametrize("ranks", RANKS)
def test_zbv_ranks_are_never_idle_between_their_first_and_last_action(ranks):
    for micro_batches in (2 * ranks, 2 * ranks + 1, 5 * ranks):
        run = simulate(make_schedule("zbv", ranks=ranks, micro_batches=micro_batches))
        assert run.inner_bubble == 0
        assert run.makespan == 6 * micro_batches + ranks - 1  # the last rank cannot start earlier


@pytest.mark.parametrize("ranks", RANKS)
def test_zbv_starts_the_last_rank_late_and_wastes_nothing_else_from_m_equal_p_on(ranks):
    for micro_batches in range(ranks, 2 * ranks):
        schedule = make_schedule("zbv", ranks=ranks, micro_batches=micro_batches)
        assert idle(schedule, Costs()) == ranks - 1
        assert max(one.both for one in peaks(schedule)) <= 2 * ranks


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("costs", [(1, 1, 1), (2, 2, 1), (4, 4, 3)])
def test_dualpipev_waits_as_described_but_for_the_block_of_two(ranks, costs):
    """(PP/2 - 1) (F&B + B - 3W) with B the whole backward and PP / 2 ranks, if a pair is not one block: I less."""
    forward, inputs, weights = costs
    block_of_two, backward = forward + (inputs + weights), inputs + weights
    described = (ranks - 1) * (block_of_two + backward - 3 * weights)
    for micro_batches in (2 * ranks, 2 * ranks + 1, 5 * ranks):
        schedule = make_schedule("dualpipev", ranks=ranks, micro_batches=micro_batches)
        assert idle(schedule, Costs(*costs)) == pytest.approx(described - (ranks - 1) * inputs)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("times", [1, 2, 5])
def test_peaks_are_those_of_the_papers(ranks, times):
    micro_batches = ranks * times

    def both(name: str, micro_batches: int = micro_batches) -> list[int]:
        return [one.both for one in peaks(make_schedule(name, ranks=ranks, micro_batches=micro_batches))]

    assert both("gpipe") == [micro_batches] * ranks
    assert both("1f1b") == [ranks - rank for rank in range(ranks)]
    assert both("zb-h1") == [ranks] * ranks
    assert both("zbv", 2 * micro_batches) == [2 * ranks] * ranks  # half-size stages: as much as 1F1B's first rank
    assert both("dualpipev", 2 * micro_batches) == [2 * ranks + 1] * ranks
    if times > 1:
        assert both("interleaved") == [2 * (ranks - 1 - rank) + ranks + 1 for rank in range(ranks)]


@pytest.mark.parametrize("ranks", RANKS)
def test_zb_h1_keeps_activations_like_1f1b_and_contexts_for_the_rest(ranks):
    ours, theirs = (peaks(make_schedule(name, ranks=ranks, micro_batches=2 * ranks)) for name in ("zb-h1", "1f1b"))
    assert [one.activations for one in ours] == [one.activations for one in theirs]
    assert [one.weight_contexts for one in ours] == [rank + 1 for rank in range(ranks)]


@pytest.mark.parametrize("micro_batches", [1, 3, 12])
@pytest.mark.parametrize("ranks", RANKS)
def test_forward_only_in_a_v_takes_the_shortest_time_there_is(ranks, micro_batches):
    run = simulate(forward_only(v_shaped(ranks), micro_batches))
    validate(run.schedule)
    # The last rank has two passes for each micro-batch and the output has `ranks - 1` further to go.
    assert run.makespan == 2 * micro_batches + 2 * (ranks - 1)


def test_weights_move_to_where_a_rank_would_wait_and_the_rest_keeps_its_order():
    before = make_schedule("zb-h1", ranks=4, micro_batches=6)
    after = weights_when_idle(before, limit=6)
    validate(after)
    assert simulate(after).makespan <= simulate(before).makespan
    for old, new in zip(before.rows, after.rows, strict=True):
        assert [action for action in new if action.op is not Op.W] == [
            action for action in old if action.op is not Op.W
        ]


def test_weights_that_cannot_move():
    with pytest.raises(ScheduleError, match="schedule '1f1b' has whole backwards"):
        weights_when_idle(make_schedule("1f1b", ranks=2, micro_batches=2), limit=2)
    with pytest.raises(ScheduleError, match="schedule 'zb-h1' cannot go on with 2 held on a rank; raise the limit"):
        weights_when_idle(make_schedule("zb-h1", ranks=3, micro_batches=3), limit=2)


def test_forward_only_in_rounds_wastes_no_more_than_the_way_through():
    run = simulate(forward_only(looped(4, 2), 8))
    assert run.makespan == 2 * 8 + 3
    assert [one.both for one in peaks(run.schedule)] == [1] * 4
