from __future__ import annotations

import itertools

import pytest

from ds_core.aio import buffers_needed, pipelined

OVERLAPS = list(itertools.product([False, True], repeat=2))


class Stages:
    """Stages that note what begins and ends; `fails` is a note at which one raises."""

    def __init__(self, fails: str = "", also: str = "") -> None:
        self.notes: list[str] = []
        self.fails = (fails, also)

    def note(self, what: str, item: int) -> None:
        self.notes.append(f"{what} {item}")
        if self.notes[-1] in self.fails:
            raise OSError(self.notes[-1])

    class Pending:
        def __init__(self, stages: Stages, what: str, item: int) -> None:
            self.stages, self.what, self.item = stages, what, item
            stages.note(f"{what} begins", item)

        def wait(self) -> int:
            self.stages.note(f"{self.what} ends", self.item)
            return self.item * 10

    def load(self, item: int) -> Pending:
        return self.Pending(self, "load", item)

    def work(self, item: int, loaded: int) -> int:
        assert loaded == item * 10
        self.note("work", item)
        return loaded + 1

    def store(self, item: int, result: int) -> Pending:
        assert result == item * 10 + 1
        return self.Pending(self, "store", item)

    def run(self, count: int, read_ahead: bool, write_behind: bool) -> Stages:
        pipelined(range(count), self.load, self.work, self.store, read_ahead=read_ahead, write_behind=write_behind)
        return self

    def under_way(self) -> int:
        return sum(("begins" in note) - ("ends" in note) for note in self.notes)


@pytest.mark.parametrize(("read_ahead", "write_behind"), OVERLAPS)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_item_is_loaded_worked_on_and_stored_in_order(count, read_ahead, write_behind):
    notes = Stages().run(count, read_ahead, write_behind).notes
    for what in ("load begins", "load ends", "work", "store begins", "store ends"):
        assert [note for note in notes if note.startswith(what)] == [f"{what} {item}" for item in range(count)]


def test_without_overlap_stages_follow_each_other():
    assert Stages().run(2, False, False).notes == [
        f"{what} {item}"
        for item in range(2)
        for what in ("load begins", "load ends", "work", "store begins", "store ends")
    ]


@pytest.mark.parametrize(("read_ahead", "write_behind"), OVERLAPS)
def test_the_next_item_is_read_and_the_last_one_written_during_work(read_ahead, write_behind):
    notes = Stages().run(4, read_ahead, write_behind).notes
    at = {note: index for index, note in enumerate(notes)}
    for item in range(3):
        assert (at[f"load begins {item + 1}"] < at[f"work {item}"]) == read_ahead
        assert at[f"load ends {item + 1}"] > at[f"work {item}"]
    for item in range(1, 4):
        assert (at[f"store ends {item - 1}"] > at[f"work {item}"]) == write_behind


@pytest.mark.parametrize(("read_ahead", "write_behind"), OVERLAPS)
def test_items_in_memory_are_as_many_as_promised(read_ahead, write_behind):
    held = peak = 0
    for note in Stages().run(6, read_ahead, write_behind).notes:
        held += note.startswith("load begins")
        held -= note.startswith("store ends")
        peak = max(peak, held)
    assert peak == buffers_needed(read_ahead=read_ahead, write_behind=write_behind)


@pytest.mark.parametrize(("read_ahead", "write_behind"), OVERLAPS)
@pytest.mark.parametrize("fails", ["load begins 2", "load ends 2", "work 2", "store begins 2", "store ends 2"])
def test_a_failure_stops_the_loop_and_waits_for_what_is_under_way(fails, read_ahead, write_behind):
    stages = Stages(fails)
    with pytest.raises(OSError, match=f"^{fails}$"):
        stages.run(6, read_ahead, write_behind)
    assert stages.under_way() == (fails.split()[1] == "begins")
    after = stages.notes[stages.notes.index(fails) + 1 :]
    assert all("ends" in note for note in after)


def test_the_first_failure_is_raised_and_the_second_logged(caplog):
    stages = Stages("work 2", also="load ends 3")
    with pytest.raises(OSError, match="work 2"):
        stages.run(6, True, True)
    assert "OSError: load ends 3" in caplog.text
    assert stages.under_way() == 0
