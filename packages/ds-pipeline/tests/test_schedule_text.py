"""Schedules written as text and read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ds_pipeline.errors import ScheduleError, ScheduleTextError
from ds_pipeline.schedules import SCHEDULES, Action, Op, Schedule, make_schedule
from ds_pipeline.schedules.text import from_text, to_text

GOOD = """\
# two ranks
schedule: by hand
stages: 0 1   # the rank of each stage
micro-batches: 1

rank 0: 0F0 0B0
  rank 1 :  1F0\t1B0  # the loss is here
"""

COUNTS = st.integers(0, 30)
NAMES = st.text(st.characters(codec="utf-8"), min_size=1).filter(
    lambda name: name.isprintable() and name == name.strip() and not name.startswith("#") and " #" not in name
)
ACTIONS = st.builds(Action, st.sampled_from(Op), COUNTS, COUNTS)
ANY = st.builds(
    Schedule,
    name=NAMES,
    micro_batches=COUNTS,
    rank_of_stage=st.lists(COUNTS).map(tuple),
    rows=st.lists(st.lists(ACTIONS).map(tuple), min_size=1, max_size=5).map(tuple),
)


@given(ANY)
def test_what_is_written_is_read_back(schedule):
    assert from_text(to_text(schedule)) == schedule


@given(name=st.sampled_from(sorted(SCHEDULES)), ranks=st.integers(1, 5), micro_batches=st.integers(1, 9))
def test_every_schedule_goes_through_text(name, ranks, micro_batches):
    schedule = make_schedule(name, ranks=ranks, micro_batches=micro_batches)
    assert from_text(to_text(schedule)) == schedule


def test_comments_spaces_and_the_order_of_headers_do_not_matter():
    assert to_text(from_text(GOOD)) == (
        "schedule: by hand\nmicro-batches: 1\nstages: 0 1\nrank 0: 0F0 0B0\nrank 1: 1F0 1B0\n"
    )
    assert from_text(GOOD.replace("\n", "\r\n")) == from_text(GOOD)


@pytest.mark.parametrize(
    ("old", "new", "line", "column", "message"),
    [
        ("0F0 0B0", "0F0 0X0", 6, 14, "unknown op 'X' in '0X0'; ops are F, B, I, W"),
        ("0F0 0B0", "0F0 B0", 6, 13, "expected an action like 2F0 (stage, op, micro-batch), got 'B0'"),
        ("1F0\t", "1F0,\t", 7, 13, "got '1F0,'"),
        ("batches: 1", "batches: one", 4, 16, "expected a number like 4, got 'one'"),
        ("stages: 0 1", "stages: 0 -1", 3, 11, "expected a number like 4, got '-1'"),
        ("stages", "stage", 3, 1, "unknown line 'stage'; known are schedule, micro-batches, stages, rank N. Did you"),
        ("rank 1", "rank 2", 7, 3, "expected the row of rank 1, got that of rank 2"),
        ("micro-batches: 1", "stages: 0 1", 4, 1, "'stages' is there a second time"),
        ("micro-batches: 1", "", 8, 1, "the text ends without a line 'micro-batches:'"),
        ("schedule: by hand", "schedule:  # which?", 2, 10, "the schedule needs a name"),
        ("rank 0: 0F0", "rank 0 0F0", 6, 1, "expected 'name: value' or 'rank N: actions', got 'rank 0 0F0 0B0'"),
    ],
)
def test_errors_name_line_and_column(old, new, line, column, message):
    assert old in GOOD
    with pytest.raises(ScheduleTextError) as caught:
        from_text(GOOD.replace(old, new))
    assert (caught.value.line, caught.value.column) == (line, column)
    assert str(caught.value).startswith(f"line {line}, column {column}: ")
    assert message in str(caught.value)


def test_a_text_without_ranks():
    with pytest.raises(ScheduleTextError, match="the text ends without a line 'rank 0:'"):
        from_text("schedule: x\nstages:\nmicro-batches: 1")


@given(st.text())
def test_any_text_is_read_or_refused(text):
    try:
        from_text(text)
    except ScheduleTextError as refusal:
        assert 1 <= refusal.line <= text.count("\n") + 1


@pytest.mark.parametrize("name", ["", " x", "a\nb", "a #b", "#a"])
def test_a_name_that_a_line_cannot_hold(name):
    with pytest.raises(ScheduleError, match="a schedule's name must be printable"):
        to_text(Schedule(name, 1, (0,), ((),)))
